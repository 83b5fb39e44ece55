"""`octavo completion SHELL`: a script that completes verbs, flags, their choices and models, made from the parsers.

Names of models are asked for when Tab is pressed, so a script does not age with what is downloaded.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from octavo.cli.flags import Parser

USAGE = "SHELL"
DESCRIPTION = """\
Print a script that completes octavo's verbs, flags and models when Tab is pressed.

  source <(octavo completion bash)                                     in ~/.bashrc
  source <(octavo completion zsh)                                      in ~/.zshrc, after compinit
  octavo completion fish > ~/.config/fish/completions/octavo.fish"""

_MODELS = ("model", "models", "model_argument", "words")  # positionals that name models


@dataclass(frozen=True, slots=True)
class Flag:
    names: tuple[str, ...]
    help: str
    choices: tuple[str, ...]
    takes_value: bool


@dataclass(frozen=True, slots=True)
class Verb:
    name: str
    help: str
    flags: tuple[Flag, ...]
    choices: tuple[str, ...]  # of a positional argument
    takes_model: bool

    @property
    def words(self) -> list[str]:
        return [name for flag in self.flags for name in flag.names] + list(self.choices)


def add_arguments(parser: Parser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh", "fish", "models"), metavar="SHELL", help="bash, zsh or fish")


def run(options: argparse.Namespace) -> int:
    if options.shell == "models":  # what the scripts ask for
        from octavo.checkpoint.store import stored

        print("\n".join(model.name for model in stored()))
    else:
        print(_SCRIPTS[options.shell](verbs()))
    return 0


def verbs() -> list[Verb]:
    """Every verb as its parser describes it."""
    from octavo.cli.main import VERBS, parser_of

    return [_verb(name, help_text, parser_of(name)) for name, (_, help_text) in VERBS.items()]


def _verb(name: str, help_text: str, parser: Parser) -> Verb:
    actions = parser._actions  # argparse has no other list of them
    flags = [
        Flag(
            tuple(action.option_strings),
            _first_words(action.help or ""),
            tuple(map(str, action.choices or ())),
            action.nargs != 0 and not isinstance(action, argparse.BooleanOptionalAction),
        )
        for action in actions
        if action.option_strings
    ]
    places = [action for action in actions if not action.option_strings]
    choices = tuple(str(choice) for action in places for choice in action.choices or () if choice != "models")
    return Verb(name, help_text, tuple(flags), choices, any(action.dest in _MODELS for action in places))


def _first_words(text: str) -> str:
    """Of a flag's help, as much as fits beside it."""
    text = text.replace("%%", "%").partition(";")[0].partition(" (default")[0]
    return text if len(text) <= 60 else f"{text[:57].rsplit(' ', 1)[0]}..."


def _bash(known: Sequence[Verb]) -> str:
    cases = []
    for verb in known:
        choices = "".join(
            f"        {'|'.join(flag.names)}) list={shlex.quote(' '.join(flag.choices))} ;;\n"
            for flag in verb.flags
            if flag.choices
        )
        files = "|".join(name for flag in verb.flags if _is_free(flag) for name in flag.names)
        free = f"        {files}) return ;;\n" if files else ""
        models = " $(octavo completion models 2>/dev/null)" if verb.takes_model else ""
        words = f'list="{" ".join(verb.words)}{models}"'
        cases.append(
            f"    {shlex.quote(verb.name)}|{shlex.quote(verb.name + ' ')}*)\n"
            f"      case $before in\n{choices}{free}        *) {words} ;;\n      esac ;;"
        )
    # What is typed is taken from the line: bash itself would cut names of models at a colon.
    return f"""\
_octavo() {{
  local line=${{COMP_LINE:0:COMP_POINT}} list before word
  word=${{line##*[[:space:]]}}
  local -a words
  read -ra words <<< "${{line%"$word"}}"
  before=${{words[${{#words[@]}}-1]}}
  COMPREPLY=()
  case "${{words[*]:1}}" in
    "") list={shlex.quote(" ".join(dict.fromkeys(verb.name.split()[0] for verb in known)))} ;;
{_bash_families(known)}
{chr(10).join(cases)}
  esac
  COMPREPLY=($(compgen -W "$list" -- "$word"))
  case $word in *:*) COMPREPLY=("${{COMPREPLY[@]#"${{word%"${{word##*:}}"}}"}}") ;; esac
}}
complete -o default -F _octavo octavo"""


def _bash_families(known: Sequence[Verb]) -> str:
    return "\n".join(
        f"    {name}) list={shlex.quote(' '.join(seconds))} ;;" for name, seconds in _families(known).items()
    )


def _is_free(flag: Flag) -> bool:
    """Takes what only its user knows: a number, a file."""
    return flag.takes_value and not flag.choices


def _families(known: Sequence[Verb]) -> dict[str, list[str]]:
    """Verbs of two words: the second ones by the first."""
    found: dict[str, list[str]] = {}
    for verb in known:
        first, _, second = verb.name.partition(" ")
        if second:
            found.setdefault(first, []).append(second)
    return found


def _zsh(known: Sequence[Verb]) -> str:
    described = {verb.name.split()[0]: verb.help for verb in known}
    verbs_list = " ".join(_described(name, text) for name, text in described.items())
    families = "\n".join(
        f"    {name}) list=({' '.join(map(shlex.quote, seconds))}); _describe verb list; return ;;"
        for name, seconds in _families(known).items()
    )
    cases = []
    for verb in known:
        choices = "".join(
            f"        {'|'.join(flag.names)}) compadd -- {' '.join(map(shlex.quote, flag.choices))}; return ;;\n"
            for flag in verb.flags
            if flag.choices
        )
        files = "|".join(name for flag in verb.flags if _is_free(flag) for name in flag.names)
        free = f"        {files}) _files; return ;;\n" if files else ""
        flags = " ".join(_described(name, flag.help) for flag in verb.flags for name in flag.names)
        more = f"compadd -- {' '.join(verb.choices)}; " if verb.choices else ""
        more += 'compadd -- ${(f)"$(octavo completion models 2>/dev/null)"}; ' if verb.takes_model else ""
        cases.append(
            f"    {shlex.quote(verb.name)}|{shlex.quote(verb.name + ' ')}*)\n"
            f"      case $words[CURRENT-1] in\n{choices}{free}      esac\n"
            f"      if [[ $PREFIX == -* ]]; then list=({flags}); _describe flag list; else {more}_files; fi ;;"
        )
    return f"""\
#compdef octavo
_octavo() {{
  local -a list
  case "${{words[2,CURRENT-1]}}" in
    '') list=({verbs_list}); _describe verb list ;;
{families}
{chr(10).join(cases)}
  esac
}}
(( $+functions[compdef] )) && compdef _octavo octavo"""


def _described(name: str, text: str) -> str:
    return shlex.quote(f"{name.replace(':', chr(92) + ':')}:{text}")


def _fish(known: Sequence[Verb]) -> str:
    lines = [
        "function __octavo_at",
        "    set -l words (commandline -opc)",
        '    test (count $words) -gt (count $argv); and test "$words[2.."(math (count $argv) + 1)"]" = "$argv"',
        "end",
        "function __octavo_begins",
        "    test (count (commandline -opc)) -eq (math (count $argv) + 1); and begin",
        "        test (count $argv) -eq 0; or __octavo_at $argv",
        "    end",
        "end",
        "complete -c octavo -f",
    ]
    for name, text in {verb.name.split()[0]: verb.help for verb in known}.items():
        lines.append(f"complete -c octavo -n __octavo_begins -a {name} -d {shlex.quote(text)}")
    for name, seconds in _families(known).items():
        lines.append(f"complete -c octavo -n '__octavo_begins {name}' -a {shlex.quote(' '.join(seconds))}")
    for verb in known:
        at = f"complete -c octavo -n '__octavo_at {verb.name}'"
        if verb.choices:
            lines.append(f"{at} -a {shlex.quote(' '.join(verb.choices))}")
        if verb.takes_model:
            lines.append(f"{at} -F -a '(octavo completion models 2>/dev/null)'")
        for flag in verb.flags:
            names = " ".join(f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in flag.names)
            value = (
                f" -x -a {shlex.quote(' '.join(flag.choices))}" if flag.choices else " -r" if flag.takes_value else ""
            )
            lines.append(f"{at} {names}{value} -d {shlex.quote(flag.help)}")
    return "\n".join(lines)


_SCRIPTS: dict[str, Callable[[Sequence[Verb]], str]] = {"bash": _bash, "zsh": _zsh, "fish": _fish}
