"""Who owns vifd's front process: starts `tests.support.owned_front` and tells it what to send to the helper."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

from vifd.kernel import ops
from vifd.kernel.ops import Plan

RETURNED, RAISED = 4, 5  # oslo_privsep.comm.Message
_NO_ENDPOINT = "6f9619ff-8b86-4d01-b42d-00cf4fc964ff"


class OwnedFront:
    """The helper, as its owned front process has it.

    Args:
        netns: the namespace that it works in.
        directory: where its Python finds modules as well.
    """

    def __init__(self, netns: str, directory: Path) -> None:
        environment = os.environ | {"PYTHONPATH": f"{directory}:{os.environ.get('PYTHONPATH', '.')}"}
        argv = [sys.executable, "-m", "tests.support.owned_front", netns]
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        try:
            assert self._receive() == "ready"
        except BaseException:
            self._process.kill()
            self._process.communicate()
            raise

    def _receive(self) -> Any:
        assert self._process.stdout is not None
        return pickle.load(self._process.stdout)

    def send(self, wanted: Any) -> Any:
        """Send the helper something, and give its answer."""
        assert self._process.stdin is not None
        pickle.dump(wanted, self._process.stdin)
        self._process.stdin.flush()
        return self._receive()

    def call(self, name: str, *arguments: Any) -> Any:
        """Call an entry point that must return, and give what it returns."""
        kind, answer = self.send((f"vifd.kernel.helper.{name}", arguments))
        assert kind == RETURNED
        return answer

    def apply(self, *groups: ops.Group) -> ops.ApplyAnswer:
        return ops.decode_apply_answer(self.call("apply", ops.encode(ops.ApplyRequest(groups))))

    def revert(self, *plans: Plan) -> ops.RevertAnswer:
        return ops.decode_revert_answer(self.call("revert", ops.encode(ops.RevertRequest(plans))))

    def announce(self, *plans: Plan) -> list[str]:
        return self.call("announce", ops.encode(ops.AnnounceRequest(plans)))

    @property
    def helper_is_alive(self) -> bool:
        return self.send(("vifd.kernel.helper.inspect", ((_NO_ENDPOINT,),))) is not None

    def close(self) -> None:
        self._process.communicate()
        assert self._process.returncode == 0
