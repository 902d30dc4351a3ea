"""What the adapters say, to the hypervisors themselves: QEMU and libvirt understand it, though the devices aren't there."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.support.children import child
from tests.support.daemon import is_alive, network_namespace, running, taps
from tests.unit.client.hypervisors.examples import (
    ID,
    bridge,
    kinds,
    macvtap,
    ovs_port,
    pci,
    tap,
    vdpa,
    vhost_user,
    without_link,
)
from vifclient import Client
from vifclient.hypervisors import cloud_hypervisor, firecracker, libvirt, qemu, qemu_pci, qmp
from vifclient.messages import Endpoint, EndpointPreference, PciHostDriver, RequestEndpointRequest, VlanSpec

QEMU = ["qemu-system-x86_64", "-machine", "q35", "-nodefaults", "-display", "none", "-S"]
# libvirt's test driver: it parses and validates as the real ones do, needs no daemon, and keeps nothing.
VIRSH = ["virsh", "--quiet", "--connect", "test:///default"]

LIBVIRT_ENDPOINTS = [
    tap(),
    tap(queues=4, mtu_bytes=9000),
    without_link(tap()),
    macvtap(2),
    bridge(),
    bridge(VlanSpec(vid=7)),
    bridge(VlanSpec(trunk_vids=[7, 8], native_vid=7)),
    pci(),
    pci(PciHostDriver.PCI_HOST_DRIVER_KERNEL),
    ovs_port(),
    vhost_user("/run/<v>&.sock", server=True),
    vhost_user(queues=2),
    vdpa(queues=2),
]


@pytest.mark.parametrize(
    ("endpoint", "missing"),
    [
        (vdpa(queues=2), "Could not open '/dev/vhost-vdpa-0'"),
        (pci(), "vfio /sys/bus/pci/devices/0000:03:10.2: no such host device"),
        (vhost_user("/nonexistent/a,b", queues=2), "Failed to connect to '/nonexistent/a,b'"),
        (vhost_user("/nonexistent/a,b", server=True), "Failed to bind socket to /nonexistent/a,b"),
        (bridge(), "bridge helper failed"),
    ],
)
def test_qemu_misses_nothing_but_the_device(endpoint: Endpoint, missing: str) -> None:
    argv = [*QEMU, *qemu.shared_memory_argv(128), *qemu.argv(endpoint, netdev_id="net0")]
    with network_namespace() as namespace:  # the host may have such a bridge
        command = ["ip", "netns", "exec", namespace, *argv]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, missing in done.stderr) == (1, True), done.stderr


def test_a_qemu_says_what_it_can_do() -> None:
    capabilities = qmp.probe()
    shown = subprocess.run([QEMU[0], "--version"], capture_output=True, text=True, check=True).stdout
    assert ".".join(map(str, capabilities.version)) in shown
    assert kinds(qemu.acceptable(shared_memory=True, capabilities=capabilities)) == kinds(qemu.acceptable(shared_memory=True))


def test_a_qemu_has_the_options_of_pci_functions(monitor: qmp.Monitor) -> None:
    def properties(device: str) -> set[str]:
        return {one["name"] for one in monitor.execute("device-list-properties", typename=device)}

    primary, standby = pci(), tap()
    primary.pci.vfio_device_path, primary.partner_endpoint_id = "/dev/vfio/devices/vfio0", standby.endpoint_id
    standby.partner_endpoint_id = primary.endpoint_id
    of_pair = qemu_pci.device_options(primary, standby_id="net0")
    assert of_pair.keys() <= properties("vfio-pci")
    assert qemu.plug(standby, netdev_id="net0").device["arguments"].keys() - {"driver", "id"} <= properties("virtio-net-pci")
    capabilities = qmp.ask(monitor)
    of_iommufd = qemu_pci.device_options(primary, iommufd_id="iommu0").keys()
    assert (of_iommufd <= properties("vfio-pci")) is capabilities.iommufd is qemu_pci.can_iommufd(primary, capabilities)
    with pytest.raises(qmp.QmpError, match=r"iommu|not-handed-over"):  # it knows no such object, or no such file
        monitor.run(qemu_pci.add_iommufd("iommu0", "not-handed-over"))


@contextmanager
def machine(timeout_s: float = qmp.DEFAULT_TIMEOUT_S) -> Iterator[qmp.Monitor]:
    """Start a machine that doesn't run yet, with a root port."""
    ours, its = socket.socketpair()
    chardev = ["-chardev", f"socket,id=qmp,fd={its.fileno()}", "-mon", "chardev=qmp,mode=control"]
    with its, child([*QEMU, *chardev, "-device", "pcie-root-port,id=rp0"], pass_fds=[its.fileno()]):
        its.close()
        with qmp.Monitor(ours, timeout_s=timeout_s) as one:
            yield one


@pytest.fixture
def monitor() -> Iterator[qmp.Monitor]:
    with machine() as one:
        yield one


def plug_of(endpoint: Endpoint, bus: str = "rp0") -> qemu.Plug:
    return qemu.plug(endpoint, netdev_id="net0", device_options={"bus": bus, "romfile": ""})


def test_what_qemu_refuses_leaves_nothing_in_it(monitor: qmp.Monitor) -> None:
    with pytest.raises(qmp.QmpError, match="refused chardev-add"):
        qmp.plug(monitor, plug_of(vhost_user("/nonexistent/socket")))
    with Path("/dev/null").open() as null, pytest.raises(qmp.QmpError, match="refused netdev_add") as caught:  # it is no tap
        qmp.plug(monitor, plug_of(tap(queues=2)), [null.fileno(), null.fileno()])
    assert getattr(caught.value, "__notes__", []) == []
    assert [one["label"] for one in monitor.execute("query-chardev")] == ["qmp"]
    assert qmp.devices(monitor) == ["rp0"]


def test_qemu_takes_queues_of_vifd_with_and_without_link(monitor: qmp.Monitor) -> None:
    with running() as vifd, Client(vifd.socket) as client:
        request = RequestEndpointRequest(endpoint_id=ID, network="blue", acceptable=qemu.acceptable(queues=2))
        endpoint = client.request_endpoint(request).endpoint
        with client.acquire_fds(ID) as fds:
            with pytest.raises(qmp.QmpError, match="refused device_add") as caught:
                qmp.plug(monitor, plug_of(endpoint, "no-such-port"), fds)
            assert getattr(caught.value, "__notes__", []) == []
            qmp.plug(monitor, plug_of(without_link(endpoint)), fds)  # under the same id: nothing was left of the first
        assert sorted(qmp.devices(monitor)) == ["net0", "rp0"]
        monitor.run(qemu.set_link("net0", up=True))
        (link,) = [one for one in taps(vifd.netns) if one["ifname"] == endpoint.tap.ifname]
        assert "LOWER_UP" in link["flags"]


def test_a_guest_that_does_not_run_may_be_asked_again_for_a_device() -> None:
    with machine(timeout_s=3) as monitor:
        monitor.execute("netdev_add", type="user", id="net0")
        monitor.run(plug_of(tap()).device)
        for _ in range(2):
            with pytest.raises(qmp.QmpTimeout):
                qmp.unplug(monitor, plug_of(tap()))
        assert sorted(qmp.devices(monitor)) == ["net0", "rp0"]


def test_a_qemu_keeps_a_function_of_a_pair_back_until_its_guest_knows_of_pairs(monitor: qmp.Monitor) -> None:
    primary, standby = pci(), tap()
    primary.partner_endpoint_id, standby.partner_endpoint_id = ID, ID
    alone = qemu.plug(primary, netdev_id="vf0", device_options={"bus": "rp0"})
    of_pair = qemu.plug(
        primary, netdev_id="vf0", device_options=qemu_pci.device_options(primary, standby_id="net0") | {"bus": "rp0"}
    )
    with pytest.raises(qmp.QmpError, match="no such host device"):
        qmp.plug(monitor, alone)
    monitor.execute("netdev_add", type="user", id="net0")
    monitor.run(plug_of(standby).device)
    qmp.plug(monitor, of_pair)
    assert sorted(qmp.devices(monitor)) == ["net0", "rp0"]


@pytest.mark.parametrize("made_by", ["qemu", "starter"])
def test_a_qemu_is_waited_for_whoever_made_its_socket(made_by: str, tmp_path: Path) -> None:
    path, pid_file = tmp_path / "qmp", tmp_path / "pid"
    with socket.socket(socket.AF_UNIX) as listener:
        where = f"path={path}"
        if made_by == "starter":
            listener.bind(str(path))
            listener.listen()
            where = f"fd={listener.fileno()}"
        chardev = ["-chardev", f"socket,id=qmp,{where},server=on,wait=off", "-mon", "chardev=qmp,mode=control"]
        argv = [*QEMU, *chardev, "-daemonize", "-pidfile", str(pid_file)]  # it goes to the background once its sockets are open
        subprocess.run(argv, pass_fds=[listener.fileno()], check=True)
    pid = int(pid_file.read_text())
    try:
        with qmp.Monitor.connect(str(path)) as monitor:
            assert monitor.pid == pid
            monitor.quit()
        assert not is_alive(pid)
    finally:
        if is_alive(pid):  # the test failed
            os.kill(pid, signal.SIGKILL)


def define(device: str, directory: Path) -> ElementTree.Element:
    """Let libvirt validate a domain against its schemas and define it, and give it back as libvirt understood it."""
    path = directory / "domain.xml"
    domain = f"<name>web</name><uuid>{uuid.uuid4()}</uuid><memory>8192</memory>{libvirt.memory_backing_xml()}"
    path.write_text(f"<domain type='test'>{domain}<os><type>hvm</type></os><devices>{device}</devices></domain>")
    done = subprocess.run([*VIRSH, f"define --validate {path}; dumpxml web"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    text = done.stdout[done.stdout.index("<domain") :]
    return ElementTree.fromstring(text)


@pytest.mark.parametrize("endpoint", LIBVIRT_ENDPOINTS)
def test_libvirt_reads_a_device_as_it_was_written(endpoint: Endpoint, tmp_path: Path) -> None:
    written = ElementTree.fromstring(libvirt.device_xml(endpoint))
    domain = define(ElementTree.tostring(written, encoding="unicode"), tmp_path)
    (read,) = domain.findall(f"./devices/{written.tag}")
    assert read.attrib == written.attrib
    for part in written.iter():
        assert [one.attrib for one in read.iter(part.tag)] == [one.attrib for one in written.iter(part.tag)]
    assert libvirt.endpoint_ids(ElementTree.tostring(domain, encoding="unicode")) == [ID]


def test_libvirt_shares_memory(tmp_path: Path) -> None:
    memory = define(libvirt.device_xml(vhost_user()), tmp_path).find("memoryBacking")
    assert memory is not None
    assert [(one.tag, one.attrib) for one in memory] == [("source", {"type": "memfd"}), ("access", {"mode": "shared"})]


@pytest.mark.parametrize(
    ("acceptable", "configure"),
    [
        (libvirt.acceptable(queues=2, shared_memory=True), libvirt.device_xml),
        (qemu.acceptable(queues=2, shared_memory=True), lambda one: qemu.plug(one, netdev_id="net0")),
        (qemu.acceptable(shared_memory=True), lambda one: qemu.argv(one, netdev_id="net0", fds=fds_of(one))),
        (
            cloud_hypervisor.acceptable(queues=2, shared_memory=True),
            lambda one: cloud_hypervisor.add(one, device_id="net0", fds=fds_of(one)),
        ),
        (firecracker.acceptable(), lambda one: firecracker.add(one, iface_id="net0")),
    ],
)
def test_every_kind_that_vifd_gives_is_configured(
    acceptable: list[EndpointPreference], configure: Callable[[Endpoint], object]
) -> None:
    with running(fake=True) as vifd, Client(vifd.socket) as client:
        for preference in acceptable:
            request = RequestEndpointRequest(endpoint_id=str(uuid.uuid4()), network="default", acceptable=[preference])
            endpoint = client.request_endpoint(request).endpoint
            assert endpoint.WhichOneof("location") == preference.WhichOneof("kind")
            assert configure(endpoint)


def fds_of(endpoint: Endpoint) -> list[int] | None:
    """Numbers of queues, as many as there are."""
    return list(range(5, 5 + endpoint.macvtap.queues)) if endpoint.HasField("macvtap") else None


def test_libvirts_schema_refuses_what_is_not_in_it(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="XML document failed to validate against schema"):
        define("<interface type='ethernet'><targets dev='vdt0'/></interface>", tmp_path)
