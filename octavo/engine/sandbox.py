"""Jinja's immutable sandbox with an end: a template gets so much processor time and writes so much text.

Jinja's own sandbox keeps a template from reaching anything; this keeps it from running for ever or filling the memory.
Time and text are checked at every turn of a loop and of its filter, every call, filter, test, operator and `{{ … }}`;
strings and numbers before an operator or an argument makes them huge. Nothing interrupts a single call: sorting a large
list or searching it runs to its end before the time is seen, and neither the time nor the memory that one call takes
for large values (replace, join, the text of a list that holds another many times over) is foreseen. Knows nothing of
messages.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jinja2 import Template, TemplateError, nodes, pass_context, pass_environment
from jinja2.compiler import CodeGenerator, Frame, MacroRef
from jinja2.environment import Environment
from jinja2.filters import do_format, do_sum, make_attrgetter
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

_PROCESSOR_SECONDS = 1.0
_LONGEST_TEXT = 2**25  # characters written, characters of a value on the way
_MOST_ELEMENTS = 2**20  # of a list: one call may have to walk all of it
_LARGEST_ARGUMENT = 2**20  # the largest number that a filter or a method is given
_MOST_BITS = 4096  # of a whole number
_NUMBER = re.compile(r"\d+")  # in a format string: a width, a precision
_WIDTH_FROM_ARGUMENT = re.compile(r"\*|\{[^}]*\{")
_BUDGET = "octavo budget"  # among a template's variables, under a name no template can write


class _Budget:
    """What is left for one rendering."""

    def __init__(self) -> None:
        self._until = time.thread_time() + _PROCESSOR_SECONDS
        self._characters = _LONGEST_TEXT

    def spend(self, characters: int = 0) -> None:
        self._characters -= characters
        if self._characters < 0:
            raise TemplateError(f"it writes more than {_LONGEST_TEXT} characters")
        if time.thread_time() > self._until:
            raise TemplateError(f"it takes longer than {_PROCESSOR_SECONDS:g} s")


def render(template: Template, variables: Mapping[str, Any]) -> str:
    """The text of a template of a `BoundedSandbox`. Raises TemplateError at its limits, else what templates raise."""
    return template.render({**variables, _BUDGET: _Budget()})


class _Generator(CodeGenerator):
    """Writes Python that asks the budget."""

    def visit_For(self, node: nodes.For, frame: Frame) -> None:  # noqa: N802  Jinja's own name
        node.body.insert(0, nodes.ExprStmt(_payment(node.body)))
        if node.test is not None:
            node.test = nodes.Or(_payment([]), node.test)
        super().visit_For(node, frame)

    def macro_body(self, node: nodes.Macro | nodes.CallBlock, frame: Frame) -> tuple[Frame, MacroRef]:
        node.body.insert(0, nodes.ExprStmt(_payment(node.body)))
        return super().macro_body(node, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802
        self.write("environment.concatenate((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:  # noqa: N802
        self.write("(environment.spend(context) or ")
        super().visit_Compare(node, frame)
        self.write(")")

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:  # noqa: N802
        if isinstance(node.arg, nodes.Slice):
            self.write("(environment.spend(context) or ")
        super().visit_Getitem(node, frame)
        if isinstance(node.arg, nodes.Slice):
            self.write(")")


def _payment(body: list[nodes.Node]) -> nodes.Call:
    """An expression, of no value, that pays for the text that stands in `body` itself."""
    literal = sum(len(data.data) for node in body for data in _literals(node))
    arguments = [nodes.ContextReference(), nodes.Const(literal)]
    return nodes.Call(nodes.EnvironmentAttribute("spend"), arguments, [], None, None)


def _literals(node: nodes.Node) -> Iterator[nodes.TemplateData]:
    if isinstance(node, nodes.TemplateData):
        yield node
    yield from node.find_all(nodes.TemplateData)


class BoundedSandbox(ImmutableSandboxedEnvironment):
    code_generator_class = _Generator
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, **options: Any) -> None:
        super().__init__(finalize=_written, optimized=False, **options)  # constants are computed under a budget too
        self.globals.pop("lipsum")
        replaced: dict[str, Callable[..., Any]] = {"format": _format, "sum": _sum}
        self.filters |= replaced
        self.filters = {name: bounded(each) for name, each in self.filters.items()}
        tests: dict[str, Any] = self.tests
        self.tests = {name: bounded(each) for name, each in tests.items()}

    def spend(self, context: Context, characters: int = 0) -> None:
        context.parent[_BUDGET].spend(characters)

    def concatenate(self, parts: tuple[Any, ...]) -> str:
        texts = [str(part) for part in parts]
        _check(sum(map(len, texts)))
        return "".join(texts)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        self.spend(context)
        if type(left) is str and type(right) is str and operator == "+":  # what templates do most
            _check(len(left) + len(right))
            return left + right
        match operator:
            case "+" if hasattr(left, "__len__") and hasattr(right, "__len__"):
                _check(len(left) + len(right), left)
            case "*" if hasattr(left, "__len__") and isinstance(right, int):
                _check(len(left) * right, left)
            case "*" if hasattr(right, "__len__") and isinstance(left, int):
                _check(len(right) * left, right)
            case "*" if isinstance(left, int) and isinstance(right, int):
                _check_bits(left.bit_length() + right.bit_length())
            case "**" if isinstance(left, int) and isinstance(right, int):
                _check_bits(left.bit_length() * right)
            case "%" if isinstance(left, str):
                _check_format(left, right if isinstance(right, tuple) else (right,))
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805  Jinja's own names
        __self.spend(__context)
        if not isinstance(__obj, Macro) and __obj not in (Namespace, dict):  # these only keep what they are given
            _check_arguments((*args, *kwargs.values()))
        return super().call(__context, __obj, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Any:
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def checked(*args: Any, **kwargs: Any) -> str:
            _check_format(value.__self__, (*args, *kwargs.values()))
            return wrapped(*args, **kwargs)

        return checked


def bounded(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter or test that is paid for and refuses huge numbers, such as the width of `center`."""
    wanted = getattr(function, "jinja_pass_arg", None)  # Jinja's mark of what to pass before the value

    @functools.wraps(function)
    def checked(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        context.parent[_BUDGET].spend()
        _check_arguments((*args, *kwargs.values()))
        if wanted is None:
            return function(value, *args, **kwargs)
        first = {"context": context, "eval_context": context.eval_ctx, "environment": context.environment}[wanted.name]
        return function(first, value, *args, **kwargs)

    return pass_context(checked)


def _format(form: Any, *args: Any, **kwargs: Any) -> str:
    _check_format(str(form), (*args, *kwargs.values()))
    return do_format(form, *args, **kwargs)


@pass_environment
def _sum(environment: Environment, iterable: Any, attribute: str | int | None = None, start: Any = 0) -> Any:
    """Jinja's own copies the whole sum for every list that is added."""
    if isinstance(start, int | float):
        return do_sum(environment, iterable, attribute, start)
    if not isinstance(start, list):
        raise TemplateError("it sums what are neither numbers nor lists")
    total = list(start)
    for item in iterable if attribute is None else map(make_attrgetter(environment, attribute), iterable):
        if not isinstance(item, list):
            raise TemplateError("it adds to a list what is none")
        _check(len(total) + len(item), total)
        total += item
    return total


@pass_context
def _written(context: Context, value: Any) -> str:
    text = str(value)
    context.parent[_BUDGET].spend(len(text))
    return text


def _check(size: int, kind: Any = "") -> None:
    """Of a value of that size that is like `kind`."""
    most = _LONGEST_TEXT if isinstance(kind, str) else _MOST_ELEMENTS
    if size > most:
        raise TemplateError(f"it makes a value of more than {most} elements")


def _check_bits(count: int) -> None:
    if count > _MOST_BITS:
        raise TemplateError("it computes with numbers that are too large")


def _check_arguments(values: tuple[Any, ...]) -> None:
    if any(isinstance(value, int) and value > _LARGEST_ARGUMENT for value in values):
        raise TemplateError(f"it passes a number above {_LARGEST_ARGUMENT}")


def _check_format(form: str, values: tuple[Any, ...]) -> None:
    """Never too low for strings and numbers: every width, and the longest value at every place."""
    given = [part for each in values for part in (each.values() if isinstance(each, Mapping) else (each,))]
    longest = max((len(each) for each in given if isinstance(each, str)), default=0)
    if _WIDTH_FROM_ARGUMENT.search(form):
        longest += max((each for each in given if isinstance(each, int)), default=0)
    numbers = _NUMBER.findall(form)
    widths = sum(map(int, numbers)) if all(len(each) < 10 for each in numbers) else _LONGEST_TEXT
    if len(form) + widths + (form.count("%") + form.count("{")) * longest > _LONGEST_TEXT:
        raise TemplateError("it formats a text to a width that is too large")
