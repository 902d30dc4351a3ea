"""What the unprivileged process calls: the privileged helper behind plain functions, or nothing at all.

Calls block their thread. They raise `HelperLostError` when the helper is gone; nothing can be said then of what was being done,
so the daemon ends and its successor's recovery finds out.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from vifd.errors import HostNotReady, KernelRefused, NetworkFull, StartError, UnknownEndpoint, VifdError
from vifd.kernel import ops

_Answer = TypeVar("_Answer")


class HelperLostError(Exception):
    """The helper died or doesn't answer as it must."""


class Room(Protocol):
    """The kernel, as the use cases see it."""

    def apply(self, groups: Sequence[ops.Group]) -> list[list[ops.Made] | VifdError]:
        """Make groups of plans, each all or none: for each group, what its plans came to or why not."""

    def revert(self, plans: Sequence[ops.Plan]) -> list[VifdError | None]:
        """Delete what plans made: for each plan, None or why it is still there."""

    def inspect(self, endpoint_ids: Sequence[str]) -> list[ops.Device]:
        """Tell what is there of endpoints' devices; with no id, of every marked device."""

    def open_queues(self, endpoint_id: str, count: int) -> list[int]:
        """Open queues of an endpoint's tap; the caller closes them."""


class PrivilegedRoom:
    """The kernel behind the privileged helper.

    Args:
        fd_channel: `fds` of what `helper.start` gave.
    """

    def __init__(self, fd_channel: socket.socket) -> None:
        from vifd.kernel import helper  # noqa: PLC0415  only a vifd that has a helper pays for its imports

        self._helper = helper
        self.fd_channel = fd_channel
        self._fd_lock = threading.Lock()

    def apply(self, groups: Sequence[ops.Group]) -> list[list[ops.Made] | VifdError]:
        """See Room."""
        answer = _call(self._helper.apply, ops.encode(ops.ApplyRequest(tuple(groups))))
        decoded = ops.decode_apply_answer(answer)
        return [_error(made) if isinstance(made, ops.Refusal) else made for made in decoded]

    def revert(self, plans: Sequence[ops.Plan]) -> list[VifdError | None]:
        """See Room."""
        answer = _call(self._helper.revert, ops.encode(ops.RevertRequest(tuple(plans))))
        return [None if refusal is None else _error(refusal) for refusal in ops.decode_revert_answer(answer)]

    def inspect(self, endpoint_ids: Sequence[str]) -> list[ops.Device]:
        """See Room."""
        return ops.decode_devices(_call(self._helper.inspect, tuple(endpoint_ids)))

    def open_queues(self, endpoint_id: str, count: int) -> list[int]:
        """See Room.

        Raises:
            UnknownEndpoint: its tap is gone.
            KernelRefused: somebody has it open, or another reason of the kernel.
        """
        token = secrets.token_bytes(16)
        with self._fd_lock:
            number = _call(self._helper.open_queues, endpoint_id, count, token)
            if number == 0:
                got, fds, _, _ = socket.recv_fds(self.fd_channel, len(token), count)
                if got != token or len(fds) != count:
                    raise HelperLostError("the helper sent other descriptors than those asked for")
                return fds
        if number == 19:  # ENODEV
            raise UnknownEndpoint(f"the tap of endpoint {endpoint_id} is gone; release the endpoint and request it again")
        message = "somebody has it open already" if number == 16 else os.strerror(number)  # EBUSY
        raise KernelRefused("OpenQueues", endpoint_id, number, message)

    def reload(self) -> tuple[str, dict[str, str]]:
        """Let the helper read the configuration again.

        Returns:
            The configuration's text; and by network, what is wrong with its bridge.

        Raises:
            StartError: the configuration is wrong, and stays as it was.
        """
        text, problems = _call(self._helper.reload)
        if "" in problems:
            raise StartError(problems[""])
        return text, problems

    def stop(self) -> None:
        """End the helper."""
        self._helper.context.stop()

    def ping(self) -> None:
        """Ask the helper for a sign of life."""
        self.inspect(["00000000-0000-4000-8000-000000000000"])


class NoRoom:
    """No kernel at all: for a vifd whose networks are all fake."""

    def apply(self, groups: Sequence[ops.Group]) -> list[list[ops.Made] | VifdError]:
        """Make plans that are empty."""
        return [[_nothing(plan) for plan in group] for group in groups]

    def revert(self, plans: Sequence[ops.Plan]) -> list[VifdError | None]:
        """Delete nothing."""
        return [None for _ in plans]

    def inspect(self, endpoint_ids: Sequence[str]) -> list[ops.Device]:  # noqa: ARG002  Room's signature
        """Find nothing."""
        return []

    def open_queues(self, endpoint_id: str, count: int) -> list[int]:  # noqa: ARG002  Room's signature
        """Open nothing."""
        raise UnknownEndpoint(f"endpoint {endpoint_id} has no tap in the kernel")


def _nothing(plan: ops.Plan) -> ops.Made:
    if plan:
        raise ValueError(f"a vifd without a helper can't {plan[0]}")
    return ops.Made()


def _call(entry_point: Callable[..., _Answer], *arguments: object) -> _Answer:
    try:
        return entry_point(*arguments)
    except Exception as error:
        raise HelperLostError(f"the privileged helper failed: {type(error).__name__}: {error}") from error


def _error(refusal: ops.Refusal) -> VifdError:
    match refusal.cause:
        case ops.FULL:
            return NetworkFull(f"{refusal.message}; release an endpoint of this network, or use another network")
        case ops.NOT_READY:
            return HostNotReady(refusal.message)
        case _:
            return KernelRefused(refusal.operation, refusal.device, refusal.errno, refusal.message)
