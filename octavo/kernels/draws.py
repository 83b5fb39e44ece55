"""What is to be drawn from rows of logits, as arrays that kernels of any kind can read.

R rows, D draws of all rows together, V vocabulary; M sequences whose tokens are counted, S steered ones, G masks of a
step, W words of a mask; Q rows that report log-probabilities, P draws of those.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

#: In what is remembered of a token: it is in the prompt. The bits below count how often it was put out.
IN_PROMPT = 1 << 30


class Draws(NamedTuple):
    """Temperature 0 takes the best token; else temperature, min-p, top-k, top-p in this order, and one number a draw.

    The number is uniform in [0, 1), keyed by (seed, position); the token stands there in the cumulative distribution:
    best first, equals by their id, where top-k or top-p restrict it, else in the vocabulary's order.
    """

    temperature_R: npt.NDArray[np.float32]
    min_p_R: npt.NDArray[np.float32]
    top_p_R: npt.NDArray[np.float32]
    top_k_R: npt.NDArray[np.int64]  # 0 or less: all
    positions_R: npt.NDArray[np.int64]
    first_R1: npt.NDArray[np.int64]  # where each row's draws begin; the last entry is D
    seeds_D: npt.NDArray[np.uint64]


class DeviceDraws(NamedTuple):
    """`Draws` on a device."""

    temperature_R: Tensor  # float32, as the next two
    min_p_R: Tensor
    top_p_R: Tensor
    top_k_R: Tensor  # int32; 0 or less: all
    positions_R: Tensor  # int64
    first_R1: Tensor  # int32
    seeds_D: Tensor  # int64: the bits of the seed


class Adjustments(NamedTuple):
    """What changes logits before anything is drawn, in this order; -1: nothing of the kind for the row."""

    steering_R: Tensor  # int32: row of `steering_SV`
    mask_R: Tensor  # int32: row of `masks_GW`
    said_R: Tensor  # int32: row of `said_MV`
    repetition_R: Tensor  # float32, as the next two: penalties of what was said
    presence_R: Tensor
    frequency_R: Tensor
    steering_SV: Tensor  # float32, added; -inf forbids
    masks_GW: Tensor  # int32: bit i of word j is set where token 32j + i may be drawn
    said_MV: Tensor  # int32: times put out, and IN_PROMPT
    last_M: Tensor  # int64: here goes what the row's first draw comes to, for `count_tokens`


class Report(NamedTuple):
    """Where log-probabilities are wanted, and where they go: of each draw, and the best ones of each row."""

    rows_Q: Tensor  # int32
    wanted_Q: Tensor  # int32: how many of the best
    draws_P: Tensor  # int32
    place_P: Tensor  # int32: in Q
    own_P: Tensor  # float32
    rank_P: Tensor  # int32
    best_QN: Tensor  # float32
    best_ids_QN: Tensor  # int32
