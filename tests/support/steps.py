"""Counts what the helper changes of the kernel and of its marks, and kills after one of these steps, as kill -9 does."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import pytest

from vifd.kernel.netlink import RTM_GETLINK, RtnlSocket
from vifd.kernel.nft.devices import Guards
from vifd.kernel.sriov.marks import Marks

#: All that changes something; what is sent to rtnetlink at once is done at once.
CHANGES = [(RtnlSocket, "exchange"), (Guards, "put"), (Marks, "create"), (Marks, "discard")]


def _only_asks(arguments: tuple[Any, ...]) -> bool:
    """Tell whether messages of rtnetlink only ask for links."""
    messages = arguments[1] if isinstance(arguments[0], RtnlSocket) else ()
    return bool(messages) and all(int.from_bytes(one[4:6], sys.byteorder) == RTM_GETLINK for one in messages)


class Steps:
    """Counts changes, and kills the process after one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = self.die_at = 0
        for owner, name in CHANGES:
            monkeypatch.setattr(owner, name, self._counted(getattr(owner, name)))

    def _counted(self, change: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **named: Any) -> Any:
            result = change(*arguments, **named)
            if not _only_asks(arguments):
                self.count += 1
                if self.count == self.die_at:
                    os.kill(os.getpid(), signal.SIGKILL)
            return result

        return counted

    def of(self, action: Callable[[], None]) -> int:
        """Give how many changes something makes."""
        self.count = 0
        action()
        return self.count

    def killed(self, action: Callable[[], None], step: int) -> None:
        """Begin something in a process that is killed after a step."""
        pid = os.fork()
        if not pid:
            self.count, self.die_at = 0, step
            try:
                action()
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
