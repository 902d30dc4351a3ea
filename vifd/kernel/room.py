"""What the unprivileged process calls: the privileged helper behind plain coroutines, or nothing at all.

They raise `HelperLostError` when the helper is gone; nothing can be said then of what was being done, so the daemon ends and its
successor's recovery finds out.
"""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
import socket
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Protocol

from vifd.errors import (
    AddressInUse,
    FunctionTaken,
    HostNotReady,
    KernelRefused,
    NetworkFull,
    StartError,
    UnknownEndpoint,
    VifdError,
    WrongState,
)
from vifd.kernel import names, ops
from vifd.kernel.sriov.inventory import Inventory
from vifd.model import Drift

if TYPE_CHECKING:
    from vifd.kernel.calls import Calls

_NO_ENDPOINT = "00000000-0000-4000-8000-000000000000"
_OfCard = ops.ClaimFunction | ops.BindFunction | ops.ChangeFunction | ops.CreateVdpa | ops.BindVdpa
_OF_CARDS = _OfCard.__args__


class HelperLostError(Exception):
    """The helper died, or doesn't answer as it must."""


class Room(Protocol):
    """The kernel, as the use cases see it."""

    async def apply(self, groups: Sequence[ops.Group]) -> list[list[ops.Made] | VifdError]:
        """Make groups of plans, each all or none: for each group, what its plans came to or why not."""

    async def change(self, groups: Sequence[ops.Group]) -> list[list[ops.Made] | VifdError]:
        """Change devices of endpoints that live, as `apply` does."""

    async def revert(self, plans: Sequence[ops.Plan]) -> list[VifdError | None]:
        """Delete what plans made: for each plan, None or why it is still there."""

    async def check(self, plans: Sequence[ops.Plan]) -> list[list[Drift]]:
        """Tell, for each plan, how what is there differs from what it made."""

    async def announce(self, plans: Sequence[ops.Plan]) -> list[str]:
        """Announce VMs that run here now, to who is behind the uplinks: for each plan, why not, or an empty text."""

    async def restore_guard(self) -> bool:
        """Put the guard's table back if somebody has changed it; tell whether somebody had."""

    async def inspect(self, endpoint_ids: Sequence[str]) -> list[ops.Device]:
        """Tell what is there of endpoints' devices; with no id, of every marked device."""

    async def open_queues(self, endpoint_id: str, count: int, *, vnet_hdr: bool) -> list[int]:
        """Open queues of an endpoint's tap or macvtap; the caller closes them. `vnet_hdr` counts for a macvtap alone."""


class PrivilegedRoom:
    """The kernel behind the privileged helper.

    The helper has few threads (equipping.needed_threads). Who makes and who takes down come batch by batch, and a sign of life is
    asked for now and then; all the others, as many as there are calls, wait here for each other, so that no crowd of them keeps
    anybody from an endpoint, or looks like a helper that is dead.

    A call about a VF or a vDPA device may take seconds. So those wait for each other alone, card by card, and never take the
    threads of all others.

    Args:
        calls: the helper's entry points.
        fd_channel: where the helper sends descriptors.
        card_calls: how many calls about VFs and vDPA devices the helper has threads for.
        inventory: says which PF a VF is of.
    """

    def __init__(self, calls: Calls, fd_channel: socket.socket, card_calls: int = 1, inventory: Inventory | None = None) -> None:
        self._call = calls.call
        self._fd_channel = fd_channel
        self._fd_channel.setblocking(False)
        #: By PF or management device, and by "" for all that is about neither.
        self._aside: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._of_cards = asyncio.Semaphore(card_calls)
        self._inventory = inventory or Inventory()

    async def apply(self, groups: Sequence[ops.Group]) -> list[list[ops.Made] | VifdError]:
        """See Room."""
        request = ops.encode(ops.ApplyRequest(tuple(groups)))
        answer = ops.decode_apply_answer(await self._call_about(chain.from_iterable(groups), "apply", request))
        return [_error(made) if isinstance(made, ops.Refusal) else made for made in answer]

    async def change(self, groups: Sequence[ops.Group]) -> list[list[ops.Made] | VifdError]:
        """See Room."""
        async with self._aside[self._card_of(chain.from_iterable(groups))]:
            return await self.apply(groups)

    async def revert(self, plans: Sequence[ops.Plan]) -> list[VifdError | None]:
        """See Room."""
        request = ops.encode(ops.RevertRequest(tuple(plans)))
        answer = ops.decode_revert_answer(await self._call_about(plans, "revert", request))
        return [None if refusal is None else _error(refusal) for refusal in answer]

    async def check(self, plans: Sequence[ops.Plan]) -> list[list[Drift]]:
        """See Room."""
        parts: defaultdict[str, list[int]] = defaultdict(list)
        for index, plan in enumerate(plans):
            parts[self._card_of([plan])].append(index)
        checks = [self._check(card, [plans[i] for i in part]) for card, part in parts.items()]
        found = [await checks[0]] if len(checks) == 1 else await asyncio.gather(*checks)
        answers = dict(zip(chain.from_iterable(parts.values()), chain.from_iterable(found), strict=True))
        return [answers[index] for index in range(len(plans))]

    async def _check(self, card: str, plans: Sequence[ops.Plan]) -> list[list[Drift]]:
        async with self._aside[card]:
            request = ops.encode(ops.CheckRequest(tuple(plans)))
            return ops.decode_check_answer(await self._call_about(plans, "check", request))

    async def _call_about(self, plans: Iterable[ops.Plan], name: str, request: bytes) -> bytes:
        """Call an entry point; if plans are about a VF or a vDPA device, once the helper has a thread for that."""
        answer: bytes
        if _find_device(plans) is None:
            answer = await self._call(name, request)
            return answer
        async with self._of_cards:
            answer = await self._call(name, request)
            return answer

    def _card_of(self, plans: Iterable[ops.Plan]) -> str:
        """Give the PF or management device of the first that plans are about; of what is gone its own name; empty: of none."""
        match _find_device(plans):
            case None:
                return ""
            case ops.CreateVdpa(place=place):
                parts = names.parse_place(place)
                return place if parts is None else parts[0]
            case ops.BindVdpa(name=name):
                return name
            case function:
                return self._inventory.find_pf_address(function.address) or function.address

    async def announce(self, plans: Sequence[ops.Plan]) -> list[str]:
        """See Room."""
        async with self._aside[""]:
            return list(await self._call("announce", ops.encode(ops.AnnounceRequest(tuple(plans)))))

    async def restore_guard(self) -> bool:
        """See Room."""
        return bool(await self._call("restore_guard"))

    async def inspect(self, endpoint_ids: Sequence[str]) -> list[ops.Device]:
        """See Room."""
        async with self._aside[""]:
            return ops.decode_devices(await self._call("inspect", tuple(endpoint_ids)))

    async def open_queues(self, endpoint_id: str, count: int, *, vnet_hdr: bool) -> list[int]:
        """See Room.

        Raises:
            UnknownEndpoint: its device is gone.
            WrongState: somebody has it open.
            KernelRefused: another reason of the kernel.
        """
        token = secrets.token_bytes(16)
        async with self._aside[""]:
            number = await self._call("open_queues", endpoint_id, count, vnet_hdr, token)
            if number == 0:
                # The helper sent them before it answered, so they are there.
                got, fds, _, _ = socket.recv_fds(self._fd_channel, len(token), count)
                if got != token or len(fds) != count:
                    raise RuntimeError("the helper sent other descriptors than those asked for")
                return fds
        if number == errno.ENODEV:
            raise UnknownEndpoint(f"the device of endpoint {endpoint_id} is gone; release the endpoint and request it again")
        if number == errno.EBUSY:
            raise WrongState(f"the tap of endpoint {endpoint_id} is open already; close it there first")
        raise KernelRefused("OpenQueues", endpoint_id, number, os.strerror(number))

    async def reload(self) -> tuple[str, dict[str, str], dict[str, str]]:
        """Let the helper read the configuration again.

        Returns:
            The configuration's text; by network, why nothing can be made on it; and by network, what else isn't as configured.

        Raises:
            StartError: the configuration is wrong, and stays as it was.
        """
        text, problems, remarks = await self._call("reload")
        if "" in problems:
            raise StartError(problems[""])
        return text, problems, remarks

    async def ping(self) -> None:
        """Ask the helper for a sign of life."""
        await self._call("inspect", (_NO_ENDPOINT,))


class NoRoom:
    """No kernel at all: for a vifd whose networks are all fake."""

    async def apply(self, groups: Sequence[ops.Group]) -> list[list[ops.Made] | VifdError]:
        """Make plans that are empty."""
        return [[_nothing(plan) for plan in group] for group in groups]

    async def change(self, groups: Sequence[ops.Group]) -> list[list[ops.Made] | VifdError]:
        """Change what is empty."""
        return await self.apply(groups)

    async def revert(self, plans: Sequence[ops.Plan]) -> list[VifdError | None]:
        """Delete nothing."""
        return [None for _ in plans]

    async def check(self, plans: Sequence[ops.Plan]) -> list[list[Drift]]:
        """Find nothing that differs."""
        return [[] for _ in plans]

    async def announce(self, plans: Sequence[ops.Plan]) -> list[str]:
        """Announce nothing."""
        return ["" for _ in plans]

    async def restore_guard(self) -> bool:
        """Find nothing that was changed."""
        return False

    async def inspect(self, endpoint_ids: Sequence[str]) -> list[ops.Device]:  # noqa: ARG002  Room's signature
        """Find nothing."""
        return []

    async def open_queues(self, endpoint_id: str, count: int, *, vnet_hdr: bool) -> list[int]:  # noqa: ARG002  Room's signature
        """Open nothing."""
        raise UnknownEndpoint(f"endpoint {endpoint_id} has no tap in the kernel")


def _find_device(plans: Iterable[ops.Plan]) -> _OfCard | None:
    """Give what is said first of a VF or a vDPA device; None: plans are about neither."""
    return next((op for plan in plans for op in plan if isinstance(op, _OF_CARDS)), None)


def _nothing(plan: ops.Plan) -> ops.Made:
    if plan:
        raise ValueError(f"a vifd without a helper can't {plan[0]}")
    return ops.Made()


def _error(refusal: ops.Refusal) -> VifdError:
    match refusal.cause:
        case ops.FULL:
            return NetworkFull(f"{refusal.message}; release an endpoint of this network, or use another network")
        case ops.NOT_READY:
            return HostNotReady(refusal.message)
        case ops.ADDRESS_TAKEN:
            return AddressInUse(refusal.message)
        case ops.TAKEN:
            return FunctionTaken(refusal.device, refusal.message)
        case ops.GONE:
            return WrongState(f"{refusal.message}; check the endpoint with repair, or release it and request it again")
        case _:
            return KernelRefused(refusal.operation, refusal.device, refusal.errno, refusal.message)
