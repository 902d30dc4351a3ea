"""What the demo writes on the terminal: headings, the commands it runs, and what they say."""

from __future__ import annotations

import os
import shlex
import sys
import textwrap
from collections.abc import Sequence

_BOLD, _DIM, _GREEN, _RED, _RESET = "\033[1m", "\033[2m", "\033[32m", "\033[31m", "\033[0m"

_WIDTH = 110


class Terminal:
    """Standard output, in colour if it is a terminal."""

    def __init__(self) -> None:
        self._colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        self._step = 0

    def heading(self, text: str) -> None:
        """Begin the next step."""
        self._step += 1
        self._write("\n" + self._paint(_BOLD, f"{self._step}. {text}"))

    def say(self, text: str) -> None:
        """Explain something, a paragraph."""
        self._write(textwrap.fill(text, width=_WIDTH, initial_indent="   ", subsequent_indent="   "))

    def command(self, prompt: str, command: Sequence[str]) -> None:
        """Show a command that is about to run."""
        lines = [""]
        for word in map(shlex.quote, command):
            if lines[-1] and len(lines[-1]) + len(word) > _WIDTH:
                lines.append("")
            lines[-1] += f" {word}"
        self._write("   " + self._paint(_DIM, prompt) + " \\\n      ".join(lines))

    def output(self, text: str) -> None:
        """Show what a command printed, all but the ends of very long lines."""
        lines = [line if len(line) <= _WIDTH else f"{line[: _WIDTH - 1]}…" for line in text.rstrip().splitlines()]
        if lines:
            self._write(textwrap.indent("\n".join(lines), "     "))

    def good(self, text: str) -> None:
        """Say that something is as it should be."""
        self._write("   " + self._paint(_GREEN, "✓") + " " + text)

    def bad(self, text: str) -> None:
        """Say that something went wrong."""
        self._write("\n" + self._paint(_RED, "failed: ") + text)

    def _paint(self, style: str, text: str) -> str:
        return f"{style}{text}{_RESET}" if self._colour else text

    def _write(self, text: str) -> None:
        encoding = sys.stdout.encoding or "ascii"
        print(text.encode(encoding, "replace").decode(encoding), flush=True)
