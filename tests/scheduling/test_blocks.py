"""Which block is given up first: memory and content each have their price."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.scheduling.blocks import BlockPool
from octavo.snapshot import FREE, KEPT, MOST_CELLS, SHARED, USED


def test_beyond_its_room_content_is_given_up_before_new_memory_is_taken():
    lost: list[int] = []
    pool = BlockPool(10, roomy=3, on_reuse=lost.append)
    for _ in range(5):
        block = pool.allocate()
        pool.keep(block)
        pool.release([block])
    assert lost == [0, 1]  # three blocks of content, then the least recently freed one is reused
    assert pool.free == 10


def test_what_runs_takes_all_the_memory_it_needs():
    pool = BlockPool(10, roomy=3)
    assert sorted(pool.allocate() for _ in range(10)) == list(range(10))
    assert pool.free == 0


def test_without_content_the_same_block_is_used_again():
    pool = BlockPool(10)
    for _ in range(4):
        block = pool.allocate()
        assert block == 0
        pool.release([block])


@settings(max_examples=200, deadline=None)
@given(count=st.integers(1, 40), moves=st.lists(st.tuples(st.sampled_from("alkr"), st.integers(0, 39)), max_size=120))
def test_a_look_shows_what_happened_to_each_block(count, moves):
    """Against books of our own: who owns each block, and whose content was worth keeping."""
    owners: list[int] = []  # a block for each of its owners
    content: set[int] = set()
    pool = BlockPool(count, on_reuse=content.remove)
    for move, which in moves:
        owned = owners[which % len(owners)] if owners else None
        if move == "a" and pool.free:
            owners.append(pool.allocate())
        elif move == "l" and owned is not None:
            pool.share(owned)
            owners.append(owned)
        elif move == "k" and owned is not None:
            pool.keep(owned)
            content.add(owned)
        elif move == "r" and owned is not None:
            owners.remove(owned)
            pool.release([owned])
    uses = Counter(owners)
    states = [min(uses[block], 2) + 1 if uses[block] else int(block in content) for block in range(count)]
    seen = pool.look(16)
    assert unfold(seen.runs) == states
    assert (seen.block_size, seen.total, seen.stride) == (16, count, 1)
    assert (seen.used, seen.shared, seen.kept) == (len(uses), states.count(SHARED), states.count(KEPT))


def test_a_look_at_many_blocks_is_a_sample_with_exact_totals():
    count = 3 * MOST_CELLS - 5
    pool = BlockPool(count)
    blocks = [pool.allocate() for _ in range(count)]
    pool.release(blocks[1000:])
    seen = pool.look(16)
    assert (seen.stride, seen.total, seen.used, seen.shared, seen.kept) == (3, count, 1000, 0, 0)
    assert seen.runs == [USED, 334, FREE, MOST_CELLS - 334 - 1]


def unfold(runs: list[int]) -> list[int]:
    assert all(a != b for a, b in pairwise(runs[::2]))
    return [state for state, length in zip(runs[::2], runs[1::2], strict=True) for _ in range(length)]
