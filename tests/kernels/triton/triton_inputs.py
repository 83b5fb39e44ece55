"""What the tests of Triton kernels share: where their tensors lie, random and poisoned ones, how close is close.

bfloat16 is missing on purpose: the interpreter computes it wrongly. On a GPU it is among the types.
"""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")

# One unit in the last place of a result of size 1 to 4, for each dtype.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3} | ({torch.bfloat16: 1.6e-2} if ON_GPU else {})
DTYPES = st.sampled_from(list(TOLERANCE))


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def rows_apart(x: Tensor) -> Tensor:
    """The same numbers as a view whose rows have NaN on both sides: what reads outside of one is seen."""
    whole = torch.full((*x.shape[:-1], x.size(-1) + 8), torch.nan, dtype=x.dtype, device=x.device)
    inner = whole[..., 3:-5]
    inner.copy_(x)
    return inner


def close(got: Tensor, expected: Tensor, times: float = 1.0) -> None:
    tolerance = TOLERANCE[got.dtype] * times
    torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)
