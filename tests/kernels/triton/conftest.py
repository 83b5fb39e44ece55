"""Every test here needs triton. Tensors made without values hold NaN: what a kernel fails to write is seen.

The interpreter computes with numpy, which would warn of infinities that a GPU makes in silence.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

pytest.importorskip("triton.language", reason="no triton: GPU kernels can neither be interpreted nor compiled")

import triton


def release(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in version.split(".")[:2])


OLD_INTERPRETER = (
    not torch.cuda.is_available() and release(triton.__version__) < (3, 9) and release(np.__version__) >= (2, 4)
)


@pytest.fixture(autouse=True, scope="module")
def poisoned_memory_and_silence(request: pytest.FixtureRequest) -> Iterator[None]:
    if OLD_INTERPRETER and request.module.__name__ != "test_triton_compiling":
        pytest.skip("before 3.9 Triton's interpreter fails with numpy 2.4 and newer")
    torch.use_deterministic_algorithms(True)
    assert torch.empty(1).isnan(), "torch fills new memory no more"
    with np.errstate(all="ignore"):
        yield
    torch.use_deterministic_algorithms(False)
