"""An error as Ollama's clients expect it."""

from __future__ import annotations

from msgspec import Struct

from octavo.errors import OctavoError


class OllamaError(Struct, kw_only=True):
    error: str


def ollama_error(error: OctavoError) -> OllamaError:
    return OllamaError(error=error.message)
