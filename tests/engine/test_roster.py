"""Who is blamed for a core's death: the killer, sooner or later, and nobody who got further in between."""

from __future__ import annotations

from octavo.engine.roster import CRASH, FOREIGN_KILL, Roster


def roster_of(*names: str) -> Roster:
    """Requests that are on a core."""
    roster = Roster()
    for name in names:
        roster.add(name)
    assert list(roster.board()) == [(name, False) for name in names]
    return roster


def boarding(roster: Roster) -> list[str]:
    return [name for name, _ in roster.board()]


def test_the_newest_request_is_blamed_when_the_others_had_got_further():
    roster = roster_of("a", "b", "new")
    roster.advance(["a", "b"])
    assert roster.bury(CRASH) is None
    assert list(roster.board()) == [("new", True)]
    assert roster.bury(CRASH) == "new"
    roster.end("new")
    assert boarding(roster) == ["a"]
    roster.advance(["a"])
    assert boarding(roster) == ["b"]


def test_a_request_alone_on_the_core_is_blamed_at_once():
    roster = roster_of("a")
    roster.advance(["a"])
    assert roster.bury(CRASH) is None
    assert boarding(roster) == ["a"]
    assert roster.bury(CRASH) == "a"


def test_getting_further_clears_a_suspect():
    roster = roster_of("a")
    for _ in range(20):
        assert roster.bury(CRASH) is None
        assert boarding(roster) == ["a"]
        roster.advance(["a"])


def test_a_foreign_kill_proves_less_than_a_crash():
    roster = roster_of("a")
    for _ in range(5):
        assert roster.bury(FOREIGN_KILL) is None
        boarding(roster)
    assert roster.bury(FOREIGN_KILL) == "a"


def test_a_killer_that_gets_one_token_further_each_time_takes_nobody_with_it():
    """It dies with the next suspect on trial, who is blamed, goes first then, and is cleared."""
    roster = roster_of("killer", "b", "c")
    for _ in range(10):
        assert roster.bury(CRASH) is None
        while True:
            names = boarding(roster)
            if "killer" in names:
                roster.advance(["killer"])
                boarding(roster)
                break
            roster.advance(names)


def test_new_requests_wait_behind_suspects_and_need_no_trial():
    roster = roster_of("a", "b")
    roster.bury(CRASH)
    assert boarding(roster) == ["a"]
    for name in ("new", "newer"):
        roster.add(name)
    assert boarding(roster) == []
    roster.end("a")  # however it ends
    assert boarding(roster) == ["b"]
    roster.advance(["b"])
    assert list(roster.board()) == [("new", False), ("newer", False)]


def test_who_says_nothing_until_the_end_lets_the_others_pass():
    roster = Roster()
    roster.add("beams", silent=True)
    roster.add("a")
    boarding(roster)
    roster.bury(CRASH)
    assert boarding(roster) == ["a"]
    roster.advance(["a"])
    assert boarding(roster) == ["beams"]


def roster_with_beams_on_trial(*others: str) -> Roster:
    """After a crash for which they alone can be blamed."""
    roster = Roster()
    roster.add("beams", silent=True)
    for name in others:
        roster.add(name)
    boarding(roster)
    roster.advance(others)
    assert roster.bury(CRASH) is None
    for name in (*others, "beams"):
        assert boarding(roster) == [name]
        roster.advance([name] if name in others else [])
    return roster


def test_newcomers_do_not_wait_for_who_says_nothing_until_the_end():
    roster = roster_with_beams_on_trial("a")
    roster.add("new")
    roster.add("more beams", silent=True)
    assert list(roster.board()) == [("new", False), ("more beams", False)]
    roster.add("newer")
    assert boarding(roster) == ["newer"]


def test_a_silent_killer_is_named_although_newcomers_are_beside_it():
    roster = roster_with_beams_on_trial("a")
    roster.add("new")
    boarding(roster)
    roster.advance(["new"])
    assert roster.bury(CRASH) == "beams"


def test_a_silent_killer_does_not_hide_behind_ever_new_company():
    roster = roster_with_beams_on_trial("a")
    deaths = 0
    guilty = None
    while guilty is None:
        roster.add(f"new {deaths}")
        while "beams" not in (names := boarding(roster)) and not roster.is_aboard("beams"):
            roster.advance(names)
        boarding(roster)
        guilty = roster.bury(CRASH)
        deaths += 1
        assert deaths < 5
    assert guilty == "beams"


def test_a_newcomer_that_kills_is_named_not_the_silent_one_beside_it():
    roster = roster_with_beams_on_trial()
    roster.add("killer")
    assert boarding(roster) == ["killer"]
    assert roster.bury(CRASH) is None, "either may have done it"
    assert boarding(roster) == ["killer"]
    assert roster.bury(CRASH) is None
    assert boarding(roster) == ["killer"]
    assert roster.bury(CRASH) == "killer"
    roster.end("killer")
    assert boarding(roster) == ["beams"]
    roster.add("new")
    assert boarding(roster) == [], "this time alone"
    roster.end("beams")
    assert boarding(roster) == ["new"]


def test_the_core_owes_only_what_is_aboard():
    roster = Roster()
    roster.add("a")
    assert not roster.aboard
    assert not roster.is_aboard("a")
    boarding(roster)
    assert roster.aboard
    assert roster.is_aboard("a")
    roster.end("a")
    assert not roster.aboard
