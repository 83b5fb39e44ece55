"""Names to files: what to serve, where it lies, what its configuration says. No torch here."""

from __future__ import annotations

from octavo.checkpoint.checkpoint import Checkpoint
from octavo.checkpoint.gguf import GGUFFile, StringArray, TensorInfo
from octavo.checkpoint.resolve import name_of, resolve

__all__ = ["Checkpoint", "GGUFFile", "StringArray", "TensorInfo", "name_of", "resolve"]
