"""Philox against the known answers published with Random123 (kat_vectors), and the shape of what is made of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.kernels.philox import philox4x32, uniform

ONES = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ONES, ONES, ONES, ONES), (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_known_answers(counter, key, words):
    assert philox4x32(counter, key) == words


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**40))
def test_a_uniform_number_is_a_function_of_seed_and_position(seed, position):
    number = uniform(seed, position)
    assert 0.0 <= number < 1.0
    assert number == uniform(seed, position)
    assert number != uniform(seed ^ 1 << 63, position)
    assert number != uniform(seed, position + 1)


def test_numbers_of_one_sequence_are_spread_evenly():
    numbers = [uniform(3, position) for position in range(4000)]
    assert abs(sum(numbers) / 4000 - 0.5) < 0.02
    counts = [sum(tenth / 10 <= number < (tenth + 1) / 10 for number in numbers) for tenth in range(10)]
    assert min(counts) > 320
    assert max(counts) < 480
