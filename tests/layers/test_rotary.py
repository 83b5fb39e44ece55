"""Properties of the angle tables that the comparison with transformers does not show."""

from __future__ import annotations

import pytest
import torch

from octavo.layers.rotary import ROPE_TYPES, Rope


@pytest.mark.parametrize("kind", ROPE_TYPES)
def test_a_position_has_the_same_bits_in_a_longer_table(kind: str) -> None:
    rope = Rope(type=kind, factor=4.0, original_max_position=64)
    long = rope.table(16, 1000, None)
    for length in (1, 3, 17, 500):
        assert torch.equal(rope.table(16, length, None), long[:length])


@pytest.mark.parametrize("kind", ROPE_TYPES)
def test_scalings_keep_or_slow_down(kind: str) -> None:
    plain = Rope().frequencies(64)
    scaled = Rope(type=kind, factor=4.0, original_max_position=512).frequencies(64)
    assert ((scaled <= plain * 1.0001) & (scaled >= plain / 4.0001)).all()


def test_the_first_position_is_not_turned() -> None:
    assert Rope().table(8, 1, None).tolist() == [[1.0] * 4 + [0.0] * 4]
