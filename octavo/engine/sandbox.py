"""Jinja's immutable sandbox with an end: a template gets so much processor time and writes so much text.

Jinja's own sandbox keeps a template from reaching anything; this keeps it from running for ever or filling the memory.
Time and text are checked at every turn of a loop, every macro and every `{{ … }}`; strings and numbers before an
operator or an argument makes them huge. What one call makes of two large strings (replace, join) is not foreseen.
Knows nothing of messages.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jinja2 import Template, TemplateError, nodes, pass_context
from jinja2.compiler import CodeGenerator, Frame, MacroRef
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

_PROCESSOR_SECONDS = 1.0
_LONGEST_TEXT = 2**25  # characters written, elements of a value on the way, the largest number a call is given
_CHECKS_PER_LOOK = 32  # asking for the time costs more than a turn of a short loop
_MOST_BITS = 4096  # of a whole number
_WIDE = re.compile(r"\d{6}")  # in a format string
_BUDGET = "octavo budget"  # among a template's variables, under a name no template can write


class _Budget:
    """What is left for one rendering."""

    def __init__(self) -> None:
        self._until = time.thread_time() + _PROCESSOR_SECONDS
        self._characters = _LONGEST_TEXT
        self._checks = 0

    def spend(self, characters: int) -> None:
        self._characters -= characters
        if self._characters < 0:
            raise TemplateError(f"it writes more than {_LONGEST_TEXT} characters")
        self._checks += 1
        if self._checks % _CHECKS_PER_LOOK == 0 and time.thread_time() > self._until:
            raise TemplateError(f"it takes longer than {_PROCESSOR_SECONDS:g} s")


def render(template: Template, variables: Mapping[str, Any]) -> str:
    """The text of a template of a `BoundedSandbox`. Raises TemplateError at its limits, else what templates raise."""
    return template.render({**variables, _BUDGET: _Budget()})


class _Generator(CodeGenerator):
    """Writes Python that asks the budget."""

    def visit_For(self, node: nodes.For, frame: Frame) -> None:  # noqa: N802  Jinja's own name
        node.body.insert(0, _step(node.body))
        super().visit_For(node, frame)

    def macro_body(self, node: nodes.Macro | nodes.CallBlock, frame: Frame) -> tuple[Frame, MacroRef]:
        node.body.insert(0, _step(node.body))
        return super().macro_body(node, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802
        self.write("environment.concatenate((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


def _step(body: list[nodes.Node]) -> nodes.ExprStmt:
    """A statement that pays for the text that stands in `body` itself."""
    literal = sum(len(data.data) for node in body for data in _literals(node))
    arguments = [nodes.ContextReference(), nodes.Const(literal)]
    return nodes.ExprStmt(nodes.Call(nodes.EnvironmentAttribute("spend"), arguments, [], None, None))


def _literals(node: nodes.Node) -> Iterator[nodes.TemplateData]:
    if isinstance(node, nodes.TemplateData):
        yield node
    yield from node.find_all(nodes.TemplateData)


class BoundedSandbox(ImmutableSandboxedEnvironment):
    code_generator_class = _Generator
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, **options: Any) -> None:
        super().__init__(finalize=_written, **options)
        self.globals.pop("lipsum")
        self.filters = {name: bounded(each) for name, each in self.filters.items()}

    def spend(self, context: Context, characters: int) -> None:
        context.parent[_BUDGET].spend(characters)

    def concatenate(self, parts: tuple[Any, ...]) -> str:
        texts = [str(part) for part in parts]
        _check(sum(map(len, texts)))
        return "".join(texts)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if type(left) is str and type(right) is str and operator == "+":  # what templates do most
            _check(len(left) + len(right))
            return left + right
        match operator:
            case "+" if hasattr(left, "__len__") and hasattr(right, "__len__"):
                _check(len(left) + len(right))
            case "*" if hasattr(left, "__len__") and isinstance(right, int):
                _check(len(left) * right)
            case "*" if hasattr(right, "__len__") and isinstance(left, int):
                _check(len(right) * left)
            case "*" if isinstance(left, int) and isinstance(right, int):
                _check_bits(left.bit_length() + right.bit_length())
            case "**" if isinstance(left, int) and isinstance(right, int):
                _check_bits(left.bit_length() * right)
            case "%" if isinstance(left, str):
                _check_format(left, right if isinstance(right, tuple) else (right,))
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805  Jinja's own names
        _check_arguments((*args, *kwargs.values()))
        return super().call(__context, __obj, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Any:
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            _check_format(value.__self__, ())
        return wrapped


def bounded(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that refuses huge numbers, such as the width of `center`."""

    @functools.wraps(function)  # with the marks by which Jinja knows what to pass
    def checked(*args: Any, **kwargs: Any) -> Any:
        _check_arguments((*args, *kwargs.values()))
        return function(*args, **kwargs)

    return checked


@pass_context
def _written(context: Context, value: Any) -> str:
    text = str(value)
    context.parent[_BUDGET].spend(len(text))
    return text


def _check(size: int) -> None:
    if size > _LONGEST_TEXT:
        raise TemplateError(f"it makes a value of more than {_LONGEST_TEXT} elements")


def _check_bits(count: int) -> None:
    if count > _MOST_BITS:
        raise TemplateError("it computes with numbers that are too large")


def _check_arguments(values: tuple[Any, ...]) -> None:
    if any(isinstance(value, int) and value > _LONGEST_TEXT for value in values):
        raise TemplateError(f"it passes a number above {_LONGEST_TEXT}")


def _check_format(form: str, values: tuple[Any, ...]) -> None:
    _check_arguments(values)
    if _WIDE.search(form):
        raise TemplateError("it formats a text to a width that is too large")
