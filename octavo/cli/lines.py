"""What somebody types at a prompt: a line, or several; with history across sessions where readline is at hand.

readline comes with Python and starts in some milliseconds; prompt_toolkit, which draws lines itself, takes hundreds.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

from octavo import env

_HISTORY_LINES = 1000
_QUOTE = '"""'


class Lines:
    """`with` it: reads the history before and keeps it afterwards, unless there is to be none."""

    def __init__(self, history: bool = True) -> None:
        self._file: Path | None = env.CACHE_DIR / "history" if history else None
        self._interrupts = 0

    def __enter__(self) -> Lines:
        with suppress(ImportError, OSError):
            import readline

            readline.clear_history()
            if "libedit" not in (readline.__doc__ or ""):
                for keys in (r"\e\C-m", r"\e\C-j"):  # Alt-Enter: a line end in the text
                    readline.parse_and_bind(rf'"{keys}": "\C-v\C-j"')
            readline.set_history_length(_HISTORY_LINES)
            if self._file is not None:
                readline.read_history_file(self._file)
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(ImportError, OSError):
            import readline

            if self._file is not None:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                os.close(os.open(self._file, os.O_WRONLY | os.O_CREAT, 0o600))
                self._file.chmod(0o600)
                readline.write_history_file(self._file)
            readline.clear_history()

    def read(self) -> str | None:
        """A text; None at the end. Ctrl-C drops what was typed, and twice in a row says how to leave."""
        try:
            text = self._text(input(">>> "))
        except KeyboardInterrupt:
            self._interrupts += 1
            hint = "(Ctrl-D or /bye leaves)" if self._interrupts > 1 else ""
            print(f"\n{hint}" if hint else "", file=sys.stderr)
            return ""
        except EOFError:
            print()
            return None
        self._interrupts = 0
        return text

    def _text(self, line: str) -> str:
        if line.startswith(_QUOTE):
            lines = [line.removeprefix(_QUOTE)]
            while not lines[-1].endswith(_QUOTE):
                lines.append(input("... "))
            return "\n".join(lines).removesuffix(_QUOTE).strip()
        lines = [line]
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            lines.append(input("... "))
        return "\n".join(lines)
