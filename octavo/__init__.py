"""octavo: an LLM serving engine a person can read in a weekend.

    from octavo import LLM, SamplingParams
    print(LLM().generate("The capital of France is")[0].outputs[0].text)

Importing octavo loads nothing heavy: torch comes with the first engine that is made.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from octavo.request import (
    BeamSearchParams,
    CompletionOutput,
    PoolingParams,
    PoolingRequestOutput,
    RequestOutput,
    SamplingParams,
)

if TYPE_CHECKING:
    from octavo.engine.async_engine import AsyncLLMEngine
    from octavo.engine.llm import LLM
    from octavo.engine.llm_engine import LLMEngine

__version__ = "0.1.0"
__all__ = [
    "LLM",
    "AsyncLLMEngine",
    "BeamSearchParams",
    "CompletionOutput",
    "LLMEngine",
    "PoolingParams",
    "PoolingRequestOutput",
    "RequestOutput",
    "SamplingParams",
    "__version__",
]

_ON_DEMAND = {
    "LLM": "octavo.engine.llm",
    "LLMEngine": "octavo.engine.llm_engine",
    "AsyncLLMEngine": "octavo.engine.async_engine",
}


def __getattr__(name: str) -> Any:
    if name in _ON_DEMAND:
        return getattr(import_module(_ON_DEMAND[name]), name)
    raise AttributeError(f"module 'octavo' has no attribute {name!r}")
