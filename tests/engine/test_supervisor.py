"""How long a core may be silent: long enough for any honest step, and no longer."""

from __future__ import annotations

import pytest

from octavo.engine.supervisor import Pace


def test_the_floor_holds_for_quick_steps_and_slow_ones_raise_it():
    pace = Pace(10.0)
    pace.note(4.0, 0.02)
    assert pace.patience() == 10.0
    pace.note(4.0, 3.0)
    assert pace.patience() == pytest.approx(30.0)
    for _ in range(1000):
        pace.note(4.0, 0.02)
    assert pace.patience() == 10.0, "slow steps are forgotten"


def test_an_announced_step_gets_what_steps_of_its_size_need():
    pace = Pace(10.0)
    pace.note(100.0, 0.5)
    assert pace.patience(40_000.0) == pytest.approx(2000.0)
    assert pace.patience(100.0) == 10.0


def test_quick_small_steps_do_not_lengthen_the_patience_with_a_large_one():
    pace = Pace(10.0)
    pace.note(2048.0, 1.5)
    for _ in range(1000):
        pace.note(1.0, 0.02)
    assert pace.patience(2048.0) == pytest.approx(15.0)
    pace = Pace(10.0)
    pace.note(40.0, 0.06)  # only short prompts so far
    for _ in range(1000):
        pace.note(1.0, 0.02)
    assert pace.patience(2048.0) < 40.0


@pytest.mark.parametrize("before", [[], [(1.0, 0.02)], [(32.0, 0.04)], [(64.0, 0.06)], [(1.0, 0.02), (300.0, 0.75)]])
def test_an_honest_large_step_is_given_its_time_whatever_came_before(before):
    pace = Pace(10.0)
    for work, seconds in before * 100:
        pace.note(work, seconds)
    for _ in range(3):
        assert pace.patience(2048.0) > 5.0 * 1.5
        pace.note(2048.0, 5.0)


def test_a_step_larger_than_any_before_is_given_more():
    pace = Pace(1.0)
    pace.note(2048.0, 5.0)
    assert pace.patience(8192.0) == pytest.approx(200.0)


def test_before_anything_was_seen_a_slow_machine_is_assumed():
    assert Pace(10.0).patience() > 30.0
    assert Pace(10.0).patience(2048.0) > 1000.0


def test_turns_without_a_step_say_nothing_about_pace():
    pace = Pace(1.0)
    pace.note(0.0, 0.0)
    assert pace.patience() > 30.0
