"""Run the demo, as root: `python -m demo`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from types import FrameType

from demo import stage
from demo.story import Story
from demo.terminal import Terminal
from tests.guest import image, machine
from tests.guest.packages import PackageError

_LOG_CHARACTERS = 8000
_INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main() -> int:
    """Tell the story, clean up whatever happens, and say how it ended."""
    if os.geteuid() != 0:
        print("demo: only root can make a network namespace: run 'make demo'", file=sys.stderr)
        return 2
    for number in _INTERRUPTS:
        signal.signal(number, _interrupt)
    terminal = Terminal()
    start_s = time.monotonic()
    try:
        _play(terminal)
    except KeyboardInterrupt:
        terminal.bad("interrupted; everything is cleaned up")
        return 130
    except (stage.StageError, machine.ConsoleError, PackageError, OSError, subprocess.SubprocessError) as error:
        terminal.bad(f"{error}")
        return 1
    terminal.good(f"vifd has stopped, the namespace is deleted; the demo took {time.monotonic() - start_s:.0f} s")
    return 0


def _play(terminal: Terminal) -> None:
    guest = image.build(report=terminal.say)
    with stage.prepare() as prepared:
        os.environ["VIFD_SOCKET"] = str(prepared.socket)
        story = Story(prepared, terminal)
        try:
            story.tell(guest)
        except Exception:
            _show_evidence(terminal, prepared, story)
            raise
        terminal.heading("The curtain falls")


def _show_evidence(terminal: Terminal, prepared: stage.Stage, story: Story) -> None:
    """Show what may explain a failure, before the stage takes it away."""
    log = prepared.log.read_text(errors="replace") if prepared.log.exists() else ""
    for name, text in (("vifd's log", log), ("the virtual machine's console", story.console)):
        terminal.bad(f"{name}:")
        terminal.output(text[-_LOG_CHARACTERS:] or "(empty)")


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    # a Ctrl-C comes twice, from the terminal and through sudo; the second must not stop the cleaning up
    for number in _INTERRUPTS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
