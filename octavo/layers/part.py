"""What every part of a model derives from: a torch module whose call is a call.

torch's own goes through hooks, which nothing here uses and which cost a microsecond at each of the few hundred calls
of a step.
"""

from __future__ import annotations

from typing import Any

from torch import nn


class Part(nn.Module):
    def __call__(self, *args: Any) -> Any:
        return self.forward(*args)
