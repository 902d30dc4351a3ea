"""A world with a network fast whose endpoints are vDPA devices, made by the helper's own code on a made-up host."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from tests.support.rooms import AUTHORITY, FakeRoom
from tests.support.vdpa_host import FIRST, SECOND, FakeVdpaHost
from tests.support.worlds import BOOT, World, asked
from vifd.drivers.vdpa import VdpaDriver, VdpaOptions
from vifd.endpoints.leftovers import Leftovers
from vifd.errors import VifdError
from vifd.kernel import ops, room
from vifd.kernel.authority import vdpa_grant
from vifd.kernel.macvtap import Failure
from vifd.kernel.vdpa.devices import VdpaDevices
from vifd.kernel.vdpa.inventory import VdpaInventory
from vifd.model import Drift, EndpointRequest, VdpaPreference

OPTIONS = VdpaOptions((FIRST, SECOND))


class VdpaRoom(FakeRoom):
    """A kernel in memory whose vDPA devices are those of a made-up host."""

    def __init__(self, host: FakeVdpaHost) -> None:
        super().__init__(AUTHORITY | {"fast": VdpaDriver.grant(OPTIONS)})
        self._devices = VdpaDevices(host.prepared())

    def _run(self, plan: ops.Plan) -> ops.Made:
        made = super()._run(plan)
        for one in plan:
            match one:
                case ops.CreateVdpa(_, _, network, place):
                    mtu_bytes = self._devices.create(one, vdpa_grant(self.authority, network))
                    if isinstance(mtu_bytes, Failure):
                        self._devices.release(one.endpoint_id, one.name)
                        raise _error("CreateVdpa", place, mtu_bytes)
                    made = replace(made, mtu_bytes=mtu_bytes)
                case ops.BindVdpa(_, name):
                    path = self._devices.bind(one)
                    if isinstance(path, Failure):
                        raise _error("BindVdpa", name, path)
                    made = replace(made, device_path=path)
                case _:
                    pass
        return made

    def _check(self, plan: ops.Plan) -> list[Drift]:
        create = next((one for one in plan if isinstance(one, ops.CreateVdpa)), None)
        bind = next((one for one in plan if isinstance(one, ops.BindVdpa)), None)
        return super()._check(plan) if create is None else self._devices.compare(create, bind)

    def _revert(self, plan: ops.Plan) -> VifdError | None:
        for one in plan:
            if isinstance(one, ops.CreateVdpa) and (failure := self._devices.release(one.endpoint_id, one.name)) is not None:
                return _error("DeleteVdpa", one.name, failure)
        return super()._revert(plan)

    async def inspect(self, endpoint_ids: Sequence[str]) -> list[ops.Device]:
        """See Room."""
        found = await super().inspect(endpoint_ids)
        return found + ([] if endpoint_ids else self._devices.find_marked())


class VdpaWorld(World):
    """See `vdpa_world`."""

    def __init__(self, path: Path, host: FakeVdpaHost) -> None:
        super().__init__(path, VdpaRoom(host))
        self.host = host
        self.drivers["fast"] = VdpaDriver("fast", OPTIONS, VdpaInventory(host.sysfs), self.time.now)
        self.leftovers = Leftovers(self.registry, self.engine)
        self.journal.set_boot_id(BOOT)

    def restarted(self) -> VdpaWorld:
        """Give what the next run of vifd is, with the same kernel and file."""
        return VdpaWorld(self.path, self.host)

    def close(self) -> None:
        """Close the journal."""
        self.journal.close()


@contextlib.contextmanager
def vdpa_world(root: Path) -> Iterator[VdpaWorld]:
    """Give a world with a network fast on two management devices, beside those that every world has.

    Args:
        root: an empty directory.
    """
    with contextlib.closing(FakeVdpaHost(root)) as host, contextlib.closing(VdpaWorld(root / "journal.db", host)) as one:
        yield one


def vdpa_asked(number: int = 1, **fields: Any) -> EndpointRequest:
    """Give a request for a vDPA device under one of many ids."""
    return asked(number, "fast", (VdpaPreference(),), **fields)


def _error(operation: str, device: str, failure: Failure) -> VifdError:
    return room._error(ops.Refusal(0, operation, device, failure.errno, failure.message, failure.cause))
