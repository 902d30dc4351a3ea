"""Real domains of a real libvirt, on endpoints that an ordinary user's driver asked for: as a session's, and as the system's."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import pytest

from tests.e2e.conftest import FIRST_UID
from tests.e2e.test_example_driver import GONE, SEEN, open_console
from tests.e2e.test_virtual_machine import links, ping
from tests.functional.test_hypervisors import LIBVIRT_ENDPOINTS
from tests.guest import machine, unprivileged
from tests.guest.image import Image
from tests.support.daemon import BLUE, Daemon, short_directory, wait_for
from vifclient import Client
from vifclient.hypervisors.libvirt import acceptable, device_xml, endpoint_ids, memory_backing_xml, read_capabilities

pytestmark = pytest.mark.timeout(300)

LIBVIRTD = Path(__file__).with_name("libvirtd")
DRIVER = Path(__file__).with_name("libvirt_driver.py")
USER = unprivileged.User(FIRST_UID, FIRST_UID)
RED = f"""
[networks.red]
driver = "bridge"
bridge = "br-red"
addresses = ["10.92.0.1/24"]

[[policy]]
uid = {FIRST_UID}
guard = "optional"
"""
DOMAIN = """
<domain type='qemu'>
  <name>{name}</name><uuid>{uuid}</uuid>
  <memory unit='MiB'>128</memory><vcpu>2</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>{image.kernel}</kernel><initrd>{image.initramfs}</initrd>
    <cmdline>console=ttyS0 quiet panic=-1 vif.eth0={address}/24</cmdline>
  </os>
  <features><acpi/></features>
  <on_poweroff>destroy</on_poweroff><on_crash>destroy</on_crash>
  <devices>
    <controller type='usb' model='none'/>
    <controller type='pci' model='pcie-root'/>
    <controller type='pci' model='pcie-root-port'/>
    <controller type='pci' model='pcie-root-port'/>
    <controller type='pci' model='pcie-root-port'/>
    <controller type='pci' model='pcie-root-port'/>
    <memballoon model='none'/>
    <interfaces/>
    <serial type='unix'><source mode='bind' path='{console}'/><target port='0'/></serial>
  </devices>
</domain>
"""


@pytest.fixture
def networks() -> str:
    return BLUE + RED


class DriverError(Exception):
    """The driver ended with an error; the message is what it said."""


@dataclass(frozen=True)
class Libvirt:
    """A libvirtd in vifd's network namespace, and the driver that speaks to it."""

    vifd: Daemon
    mode: str
    directory: Path
    uuid: str = field(default_factory=lambda: str(uuid4()))

    @property
    def socket(self) -> Path:
        """libvirtd's socket."""
        return self.directory / "socket" / "libvirt-sock"

    @property
    def console(self) -> Path:
        """The domain's serial console."""
        return self.directory / "home" / "console"

    @property
    def uri(self) -> str:
        """What reaches it."""
        return f"qemu:///{self.mode}?socket={self.socket}"

    def command(self, *arguments: str) -> list[str]:
        """Say what runs the driver as the user."""
        return unprivileged.command([sys.executable, str(DRIVER), self.vifd.socket, self.uri, *arguments], user=USER)

    def drive(self, *arguments: str) -> str:
        """Run the driver as the user and give what it printed.

        Raises:
            DriverError: it failed.
        """
        done = subprocess.run(self.command(*arguments), capture_output=True, text=True, timeout=120, check=False)
        if done.returncode != 0:
            raise DriverError(done.stderr)
        return done.stdout.strip()

    def virsh(self, commands: str) -> str:
        """Let virsh say commands to it as the user, all without an error, and give what it printed."""
        argv = unprivileged.command(["virsh", "--quiet", "--connect", self.uri, commands], user=USER)
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    def describe(self, image: Image, address: str) -> str:
        """Write the XML that the domain has here, and say where."""
        path = self.directory / "domain.xml"
        path.write_text(DOMAIN.format(name="web", uuid=self.uuid, image=image, address=address, console=self.console))
        path.chmod(0o644)
        return str(path)

    def start(self, image: Image, kind: str, queues: int = 1, *, address: str = "10.91.0.2") -> str:
        """Start the domain on network blue, and give its endpoint's id."""
        return self.drive("start", self.describe(image, address), "blue", kind, str(queues))


@contextmanager
def libvirtd(vifd: Daemon, mode: str) -> Iterator[Libvirt]:
    with short_directory() as directory:
        room = ["unshare", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]
        command = unprivileged.command([*room, str(LIBVIRTD), mode, str(USER.uid), str(directory)], user=None, open_tun=True)
        log = directory / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(["ip", "netns", "exec", vifd.netns, *command], stdout=output, stderr=output)
        one = Libvirt(vifd, mode, directory)
        try:
            wait_for(one.socket.is_socket, 60)
            yield one
        finally:
            process.kill()  # and with it all that is in its pid namespace
            process.wait()
            print(log.read_text())


def live(host: Daemon, client: Client, guest_image: Image, mode: str, kind: str, queues: int = 1) -> None:
    """Start a domain, hot-plug, hot-unplug and destroy it; it talks on every interface, and nothing is left."""
    before = links(host)
    with libvirtd(host, mode) as libvirt:
        first = libvirt.start(guest_image, kind, queues)
        with open_console(libvirt.console) as console:
            console.wait_for(machine.READY, machine.BOOT_TIMEOUT_S)
            ping(host, "10.91.0.2")
            assert console.run("ls -d /sys/class/net/eth0/queues/rx-* | wc -l") == (0, f"{queues}\n")

            second = libvirt.drive("hot-plug", libvirt.uuid, "red", kind, str(queues))
            assert console.run(SEEN)[0] == 0
            assert console.run("ip link set eth1 up && ip address add 10.92.0.2/24 dev eth1")[0] == 0
            ping(host, "10.92.0.2")

            libvirt.drive("hot-unplug", libvirt.uuid, second)
            assert console.run(GONE)[0] == 0
            assert [one.endpoint_id for one in client.list_endpoints()] == [first]
            ping(host, "10.91.0.2")

            libvirt.drive("stop", libvirt.uuid)
        assert list(client.list_endpoints()) == []
        assert links(host).keys() == before.keys()


@pytest.mark.parametrize(
    ("mode", "kind", "queues"),
    [("session", "tap", 1), ("session", "tap", 2), ("system", "tap", 1), ("system", "tap", 2), ("system", "bridge", 1)],
)
def test_a_domain_is_started_hot_plugged_and_destroyed(
    host: Daemon, client: Client, guest_image: Image, mode: str, kind: str, queues: int
) -> None:
    live(host, client, guest_image, mode, kind, queues)


def test_libvirts_driver_of_qemu_takes_every_device(host: Daemon) -> None:
    with libvirtd(host, "session") as libvirt:
        capabilities = read_capabilities(libvirt.virsh("domcapabilities"))
        every = {preference.WhichOneof("kind") for preference in acceptable(shared_memory=True, capabilities=capabilities)}
        assert every == {endpoint.WhichOneof("location") for endpoint in LIBVIRT_ENDPOINTS}
        path = Path(libvirt.describe(Image(Path("/vmlinuz"), Path("/initrd")), "10.91.0.2"))
        domain = path.read_text().replace("<os>", f"{memory_backing_xml()}<os>")
        for endpoint in LIBVIRT_ENDPOINTS:
            path.write_text(domain.replace("<interfaces/>", device_xml(endpoint)))
            shown = libvirt.virsh(f"define --validate {path}; dumpxml {libvirt.uuid}; undefine {libvirt.uuid}")
            assert endpoint_ids(shown[shown.index("<domain") : shown.index("</domain>")] + "</domain>") == [endpoint.endpoint_id]


def test_what_does_not_start_leaves_nothing(host: Daemon, client: Client, guest_image: Image) -> None:
    before = links(host)
    with libvirtd(host, "session") as libvirt:
        with pytest.raises(DriverError, match="acceptable"):  # it makes no port on a bridge
            libvirt.start(guest_image, "bridge", 1)
        wrong = Image(Path("/nonexistent"), guest_image.initramfs)
        with pytest.raises(DriverError, match="LibvirtError"):
            libvirt.start(wrong, "tap", 1)
        assert list(client.list_endpoints()) == []
        assert links(host).keys() == before.keys()
