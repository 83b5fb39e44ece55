"""Flags from config fields: every field of a config class is a flag with its name, type, help and default.

Only flags that were given reach the configs, so the configs stay the one source of defaults.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import re
import types
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from octavo.config import SECTIONS, EngineConfig, parse_quantity
from octavo.errors import ConfigError

_NUMBERS = {int: ("N", "a whole number"), float: ("X", "a number")}


class Parser(argparse.ArgumentParser):
    """Takes no abbreviations; suggests what a mistyped flag may have meant."""

    def __init__(self, prog: str, usage: str, description: str) -> None:
        super().__init__(
            prog,
            usage=f"{prog} {usage}",
            description=description,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self.secrets: set[str] = set()  # flags whose values are never printed

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        options, unknown = self.parse_known_args(arguments)
        for word in unknown:
            if not word.startswith("-") and (flag := self._secret_given(options)):
                self.error(f"one word too many (not shown: it may be a secret); for several, give {flag} again")
            flag = word.partition("=")[0]
            self.error(f"unknown argument {flag}{suggestion(flag, self._option_string_actions)}")
        return options

    def _secret_given(self, options: argparse.Namespace) -> str | None:
        """A flag among those given whose values are secrets."""
        actions = (self._option_string_actions[flag] for flag in self.secrets)
        return next((action.option_strings[0] for action in actions if getattr(options, action.dest, None)), None)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n(see {self.prog} --help)\n")


def suggestion(word: str, known: Collection[str]) -> str:
    """For a word that is not known: the one that has the same words in another order, or looks most like it."""
    parts = set(re.findall(r"\w+", word))
    holding = [each for each in known if parts and parts <= set(re.findall(r"\w+", each))]
    close = difflib.get_close_matches(word, holding or known, n=1, cutoff=0.0 if holding else 0.6)
    return f"; did you mean {close[0]}?" if close else ""


def add_flags(parser: Parser, sections: Iterable[type], without: Sequence[str] = ()) -> None:
    """A group of flags for each config class; `without` some of its fields."""
    for section in sections:
        title, _, description = (section.__doc__ or "").partition("\n")
        group = parser.add_argument_group(title.rstrip("."), description.strip() or None)
        hints = get_type_hints(section)
        for item in dataclasses.fields(section):
            if item.name in without:
                continue
            flag = "--" + item.name.replace("_", "-")
            group.add_argument(flag, dest=item.name, default=argparse.SUPPRESS, **_options(item, hints))
            if item.metadata.get("secret"):
                parser.secrets.add(flag)


def given(options: argparse.Namespace, sections: Iterable[type]) -> dict[str, Any]:
    """The fields of these config classes that flags set."""
    names = {item.name for section in sections for item in dataclasses.fields(section)}
    return {name: value for name, value in vars(options).items() if name in names}


def add_engine_flags(parser: Parser, without: Sequence[str] = ()) -> None:
    add_flags(parser, SECTIONS, without)


def engine_config(options: argparse.Namespace, model: str | None = None) -> EngineConfig:
    """The engine's config; `model` is the positional argument, if the verb has one. Raises ConfigError."""
    fields = given(options, SECTIONS)
    if model is not None and fields.setdefault("model", model) != model:
        raise ConfigError(f"two models: {model} and --model {fields['model']}; name one")
    return EngineConfig.of(**fields)


def _options(item: dataclasses.Field[Any], hints: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments of `add_argument` for a field."""
    hint = hints[item.name]
    if get_origin(hint) in (Union, types.UnionType):
        (hint,) = (member for member in get_args(hint) if member is not type(None))
    help_text = _help(item)
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction, "help": help_text}
    if get_origin(hint) is Literal:
        return {"choices": get_args(hint), "help": help_text}
    if hint == tuple[int, ...]:
        return {"action": "extend", "nargs": "+", "type": one_of_several, "metavar": "N", "help": help_text}
    if get_origin(hint) is tuple:
        return {
            "action": "append",
            "metavar": _placeholder(item.name),
            "help": f"{help_text} (for more, give the flag again)",
        }
    if item.metadata.get("quantity"):
        return {"type": quantity, "metavar": "N", "help": help_text}
    if hint in _NUMBERS:
        return {"type": number(hint), "metavar": _NUMBERS[hint][0], "help": help_text}
    assert hint is str, f"no flag can be made of {item.name}: {hint}"
    return {"metavar": _placeholder(item.name), "help": help_text}


def _help(item: dataclasses.Field[Any]) -> str:
    text = str(item.metadata["help"]).replace("%", "%%")
    if item.default in (None, (), "", dataclasses.MISSING):
        return text
    default = ("off", "on")[item.default] if isinstance(item.default, bool) else item.default
    return f"{text} (default: {default})"


def _placeholder(name: str) -> str:
    return name.rpartition("_")[2].upper()


def quantity(text: str) -> int:
    try:
        return parse_quantity(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(error.message) from None


def one_of_several(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a whole number; it takes all words up to the next flag, such as 1 2 4"
        ) from None


def number(kind: type) -> Any:
    def parse(text: str) -> Any:
        try:
            return kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {_NUMBERS[kind][1]}") from None

    return parse
