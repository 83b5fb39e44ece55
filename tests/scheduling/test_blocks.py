"""Which block is given up first: memory and content each have their price."""

from __future__ import annotations

from octavo.scheduling.blocks import BlockPool


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
