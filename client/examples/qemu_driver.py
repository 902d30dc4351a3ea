#!/usr/bin/env python3
"""Run VMs with plain QEMU, as an ordinary user who may use vifd: an example of a hypervisor driver.

qemu_driver.py start web --network blue --network red -- -m 512 -kernel vmlinuz -initrd initrd.img -append quiet
qemu_driver.py list
qemu_driver.py hot-plug web --network blue
qemu_driver.py hot-unplug web ENDPOINT_ID
qemu_driver.py stop web
qemu_driver.py recover

It keeps no state: the VMs are known by their QMP sockets, each QEMU knows what it has attached, and vifd the rest.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import subprocess
import sys
import uuid
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path

from vifclient import Client, HypervisorDriver, Interface, VifError, VirtualMachine
from vifclient.hypervisors import qemu, qmp
from vifclient.messages import Endpoint, EndpointPreference

PROGRAM = "qemu-system-x86_64"
PORTS = 8  # how many interfaces a VM may have: each sits on a root port, so that it can be unplugged
WITH_QUEUES = ("tap", "macvtap")
_PREFIX = "vif-"


class QemuError(Exception):
    """QEMU doesn't do what it is told to; the message is its own."""


class QemuDriver(HypervisorDriver):
    """Plain QEMU: what a hypervisor has to say and to do.

    Args:
        client: vifd of this host.
        directory: Where the QMP sockets are.
        queues: How many queue pairs the VMs have.
        arguments: QEMU's arguments but for what the driver says: memory, disks, kernel.
    """

    name = "qemu-example"

    def __init__(self, client: Client, directory: Path, *, queues: int = 1, arguments: Sequence[str] = ()) -> None:
        super().__init__(client)
        self._directory = directory
        self._queues = queues
        self._arguments = arguments

    def acceptable(self, vm: VirtualMachine, interface: Interface) -> list[EndpointPreference]:
        """Accept what this QEMU can attach."""
        return qemu.acceptable(queues=self._queues, capabilities=self._capabilities)

    def start_vm(self, vm: VirtualMachine, endpoints: Sequence[Endpoint]) -> None:
        """Start a QEMU, which stays when this program ends."""
        if self._is_running(vm.uuid):
            raise QemuError(f"{vm.name} runs already")
        with ExitStack() as stack:
            network: list[str] = []
            inherited: list[int] = []
            for port, endpoint in enumerate(endpoints):
                fds = stack.enter_context(self._queues_of(endpoint))
                network += qemu.argv(endpoint, netdev_id=_device_id(endpoint), fds=fds, device_options=_on_port(f"rp{port}"))
                inherited += fds or ()
            argv = [PROGRAM, "-name", qemu.escape(vm.name), *self._machine(vm.uuid), *network, *self._arguments]
            done = subprocess.run(argv, pass_fds=inherited, stderr=subprocess.PIPE, text=True, check=False)  # noqa: S603  no shell
        if done.returncode != 0:
            raise QemuError(done.stderr.strip())

    def stop_vm(self, uuid: str) -> None:
        """End the VM's QEMU."""
        try:
            with self._monitor(uuid) as monitor:
                monitor.quit()
        except qmp.QemuEnded:
            return

    def attach(self, uuid: str, endpoint: Endpoint) -> None:
        """Plug it into a root port that is free."""
        with self._monitor(uuid) as monitor, self._queues_of(endpoint) as fds:
            plug = qemu.plug(endpoint, netdev_id=_device_id(endpoint), device_options=_on_port(_find_free_port(monitor)))
            qmp.plug(monitor, plug, fds or ())

    def detach(self, uuid: str, endpoint: Endpoint) -> None:
        """Unplug it, once the guest lets it go."""
        try:
            with self._monitor(uuid) as monitor:
                qmp.unplug(monitor, qemu.plug(endpoint, netdev_id=_device_id(endpoint)))
        except qmp.QemuEnded:
            return

    def attached(self, uuid: str) -> Collection[str]:
        """Ask the VM's QEMU for its devices: they are named after their endpoints."""
        try:
            with self._monitor(uuid) as monitor:
                return [name.removeprefix(_PREFIX) for name in qmp.devices(monitor) if name.startswith(_PREFIX)]
        except qmp.QemuEnded:
            return []

    @cached_property
    def _capabilities(self) -> qemu.Capabilities:
        return qmp.probe(PROGRAM)

    def _machine(self, vm_uuid: str) -> list[str]:
        ports = [argument for port in range(PORTS) for argument in ("-device", f"pcie-root-port,id=rp{port},slot={port}")]
        quiet = ["-nodefaults", "-no-user-config", "-display", "none", "-daemonize"]
        qmp_socket = f"unix:{qemu.escape(self._socket(vm_uuid))},server=on,wait=off"
        return ["-uuid", vm_uuid, "-machine", "q35", *quiet, "-qmp", qmp_socket, *ports]

    def _socket(self, vm_uuid: str) -> str:
        return str(self._directory / f"{vm_uuid}.qmp")

    def _monitor(self, vm_uuid: str) -> qmp.Monitor:
        return qmp.Monitor.connect(self._socket(vm_uuid))

    def _is_running(self, vm_uuid: str) -> bool:
        try:
            self._monitor(vm_uuid).close()
        except qmp.QemuEnded:
            return False
        return True

    @contextmanager
    def _queues_of(self, endpoint: Endpoint) -> Iterator[Sequence[int] | None]:
        """Have the endpoint's queues handed over, so that QEMU needs no right to open its device."""
        if endpoint.WhichOneof("location") not in WITH_QUEUES:
            yield None
            return
        with self.client.acquire_fds(endpoint.endpoint_id) as queues:
            yield queues


def _device_id(endpoint: Endpoint) -> str:
    return f"{_PREFIX}{endpoint.endpoint_id}"


def _on_port(port: str) -> dict[str, qemu.Option]:
    return {"bus": port, "romfile": ""}


def _find_free_port(monitor: qmp.Monitor) -> str:
    names = qmp.devices(monitor)
    buses = [str(monitor.execute("qom-get", path=f"/machine/peripheral/{name}", property="parent_bus")) for name in names]
    taken = {bus.rsplit("/", 1)[-1] for bus in buses}
    for port in range(PORTS):
        if f"rp{port}" not in taken:
            return f"rp{port}"
    raise QemuError(f"the VM has {PORTS} interfaces already")


def _machine_named(name: str, networks: Sequence[str] = ()) -> VirtualMachine:
    """Describe a VM: its UUID follows from its name, so that nothing has to be kept."""
    vm_uuid = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{QemuDriver.name}/{os.getuid()}/{name}"))
    return VirtualMachine(uuid=vm_uuid, name=name, interfaces=tuple(Interface(network=network) for network in networks))


def _describe(endpoint: Endpoint, attached: Collection[str]) -> str:
    state = "attached" if endpoint.endpoint_id in attached else "unused"
    what = [endpoint.instance.name, endpoint.endpoint_id, endpoint.network, endpoint.WhichOneof("location") or "-", state]
    return "\t".join([*what, endpoint.port.mac, ",".join(endpoint.port.addresses)])


def _run(driver: QemuDriver, arguments: argparse.Namespace) -> Iterator[str]:
    """Run a command, and say what comes of it as it comes."""
    match arguments.command:
        case "start":
            yield from (one.endpoint_id for one in driver.start(_machine_named(arguments.vm, arguments.network)))
        case "stop":
            driver.stop(_machine_named(arguments.vm).uuid)
        case "hot-plug":
            for network in arguments.network:
                yield driver.hot_plug(_machine_named(arguments.vm), Interface(network=network)).endpoint_id
        case "hot-unplug":
            driver.hot_unplug(_machine_named(arguments.vm).uuid, arguments.endpoint_id)
        case "list":
            yield from (_describe(one, driver.attached(one.instance.uuid)) for one in driver.endpoints())
        case "recover":
            yield from driver.recover()


def _parse(argv: list[str]) -> argparse.Namespace:
    end = argv.index("--") if "--" in argv else len(argv)
    parser = _make_parser()
    arguments = parser.parse_args(argv[:end])
    arguments.qemu = argv[end + 1 :]
    if arguments.qemu and arguments.command != "start":
        parser.error("only start takes arguments of QEMU")
    return arguments


def _make_parser() -> argparse.ArgumentParser:
    summary, _, epilog = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter, prog="qemu_driver.py"
    )
    # Not XDG_RUNTIME_DIR: it goes when the user logs out, the VMs stay, and recover would take their endpoints from them.
    default = Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state", "qemu_driver")
    parser.add_argument("--socket", help="vifd's socket; default: VIFD_SOCKET, else /run/vifd/vifd.sock")
    directory = "for QMP sockets, by which VMs are known: always the same; default: %(default)s"
    parser.add_argument("--directory", type=Path, default=default, help=directory)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    start = commands.add_parser(
        "start",
        help="start a VM, and print its endpoints' ids",
        usage="%(prog)s [--queues QUEUES] [--network NETWORK]... VM [-- ARGUMENT-OF-QEMU...]",
    )
    hot_plug = commands.add_parser("hot-plug", help="give a running VM another interface, and print its endpoint's id")
    hot_unplug = commands.add_parser("hot-unplug", help="take one away")
    commands.add_parser("list", help="print VM, endpoint, network, kind, whether it is attached, MAC and addresses")
    commands.add_parser("recover", help="release what no VM has attached, and print it")
    for command in (start, commands.add_parser("stop", help="stop a VM"), hot_plug, hot_unplug):
        command.add_argument("vm", metavar="VM", help="its name")
    for command in (start, hot_plug):
        command.add_argument("--queues", type=int, default=1, help="queue pairs of each interface; default: 1")
        required, networks = command is hot_plug, "a network of vifd's; may be repeated"
        command.add_argument("--network", action="append", default=[], required=required, help=networks)
    hot_unplug.add_argument("endpoint_id", help="its endpoint")
    return parser


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Keep two of this program from working on the same VMs at once: HypervisorDriver does so only within one process."""
    with (directory / "qemu_driver.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main() -> int:
    """Run one command."""
    arguments = _parse(sys.argv[1:])
    directory = arguments.directory.expanduser().absolute()  # QEMU, as a daemon, is elsewhere
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _alone(directory), Client(arguments.socket) as client:
            driver = QemuDriver(client, directory, queues=getattr(arguments, "queues", 1), arguments=arguments.qemu)
            for line in _run(driver, arguments):
                print(line)
    except (VifError, qmp.QmpError, QemuError, ExceptionGroup, OSError) as error:
        more = [*getattr(error, "__notes__", []), *getattr(error, "exceptions", [])]
        print(f"qemu_driver.py: {error}", *more, sep="\n  ", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
