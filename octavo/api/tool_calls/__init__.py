"""How models write tool calls: one module a format, found by the name that `--tool-call-parser` takes."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module

from octavo.api.tool_calls.format import ToolFormat


@dataclass(frozen=True, slots=True)
class _Entry:
    module: str
    signs: tuple[str, ...] = ()  # that stand in a chat template of models that write so; any of them


# The first whose sign stands in a template is the template's format. Configuration lists the same names.
_FORMATS: dict[str, _Entry] = {
    "openai": _Entry("openai", ("<|channel|>",)),
    "deepseek_v3": _Entry("deepseek_v3", ("<｜tool▁calls▁begin｜>",)),
    "kimi_k2": _Entry("kimi_k2", ("<|tool_calls_section_begin|>",)),
    "minimax_m2": _Entry("tagged", ("<minimax:tool_call>",)),
    "qwen3_coder": _Entry("tagged", ("<function=",)),
    "glm45": _Entry("tagged", ("<arg_key>",)),
    "mistral": _Entry("mistral", ("[TOOL_CALLS]",)),
    "phi4_mini_json": _Entry("hermes", ("functools[", "<|tool|>")),
    "granite": _Entry("hermes", ("<|tool_call|>",)),
    "hermes": _Entry("hermes", ("<tool_call>",)),
    "pythonic": _Entry("pythonic", ("[func_name1(", "<|python_start|>", "<|tool_call_start|>")),
    "llama3_json": _Entry("llama3_json", ("<|python_tag|>", '{"name": function name, "parameters":')),
    "generic": _Entry("generic"),
}
NAMES = tuple(_FORMATS)


def tool_format(name: str, template: str | None = None) -> ToolFormat:
    """The format of that name; "auto" is the one that the chat template speaks of, else the generic one."""
    if name == "auto":
        signs = ((each, sign) for each, entry in _FORMATS.items() for sign in entry.signs)
        name = next((each for each, sign in signs if sign in (template or "")), "generic")
    module = import_module(f"octavo.api.tool_calls.{_FORMATS[name].module}")
    found: ToolFormat = module.FORMATS[name]
    return found
