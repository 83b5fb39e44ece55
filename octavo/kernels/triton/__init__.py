"""The operations as Triton kernels, for NVIDIA and AMD: a module a topic, gathered in `kernels`; needs triton.

A module holds kernels (`@triton.jit`) and the launchers around them, which have the signatures of `kernels.ops` and
are compared with `kernels.reference`. Tiles, warps and stages are plain functions of shapes: a launch must be the same
in a captured graph and in the interpreter, so nothing is tuned while it runs. Sizes that a model fixes (widths, head
sizes, block sizes) are constexpr; strides are left to be specialized, since only one known to be a multiple of 16 lets
loads be wide. Offsets into caches are int64.
"""

import os

# Sums of products are fused, as triton has always done; from 3.10 on it waits to be told, and 3.9 warns of that.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
