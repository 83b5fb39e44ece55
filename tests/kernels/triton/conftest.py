"""Every test here needs triton. Tensors made without values hold NaN: what a kernel fails to write is seen.

The interpreter computes with numpy, which would warn of infinities that a GPU makes in silence.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

pytest.importorskip("triton.language", reason="no triton: GPU kernels can neither be interpreted nor compiled")


@pytest.fixture(autouse=True, scope="module")
def poisoned_memory_and_silence() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    assert torch.empty(1).isnan(), "torch fills new memory no more"
    with np.errstate(all="ignore"):
        yield
    torch.use_deterministic_algorithms(False)
