"""What is to be drawn from rows of logits, as arrays that kernels of any kind can read.

R rows, D draws of all rows together.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt


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
