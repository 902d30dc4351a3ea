from typing import Any

import pytest
from hypothesis import given

from tests.unit.client.hypervisors.examples import (
    MAC,
    TEXT,
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
from vifclient.hypervisors import UnacceptableEndpoint, qemu, qemu_pci
from vifclient.messages import Endpoint, VlanSpec


def read_options(text: str) -> list[str]:
    """Split as QEMU does: at single commas, and a doubled comma is one."""
    return [option.replace("\0", ",") for option in text.replace(",,", "\0").split(",")]


def test_accepts() -> None:
    assert kinds(qemu.acceptable()) == ["tap", "vdpa", "macvtap", "pci", "bridge"]
    assert kinds(qemu.acceptable(shared_memory=True)) == ["tap", "vhost_user", "vdpa", "macvtap", "pci", "bridge"]
    # qemu-bridge-helper makes taps with one queue: a bridge would silently give fewer than were asked for.
    several = qemu.acceptable(queues=4)
    assert kinds(several) == ["tap", "vdpa", "macvtap", "pci"]
    assert (several[0].tap.queues, several[2].macvtap.queues) == (4, 4)


def test_opens_a_tap_by_name() -> None:
    assert qemu.argv(tap(), netdev_id="n0") == [
        "-netdev", "tap,id=n0,ifname=vdt0,script=no,downscript=no",
        "-device", f"virtio-net-pci,id=n0,netdev=n0,mac={MAC}",
    ]  # fmt: skip


def test_with_queues_by_name() -> None:
    assert qemu.argv(tap(queues=4), netdev_id="n0", vhost=True) == [
        "-netdev", "tap,id=n0,ifname=vdt0,script=no,downscript=no,queues=4,vhost=on",
        "-device", f"virtio-net-pci,id=n0,netdev=n0,mac={MAC},mq=on,vectors=10",
    ]  # fmt: skip


def test_takes_fds() -> None:
    assert qemu.argv(tap(queues=2, mtu_bytes=9000), netdev_id="n0", fds=[5, 6], device_options={"romfile": ""}) == [
        "-netdev", "tap,id=n0,fds=5:6",
        "-device", f"virtio-net-pci,id=n0,netdev=n0,mac={MAC},mq=on,vectors=6,host_mtu=9000,romfile=",
    ]  # fmt: skip
    assert qemu.argv(tap(), netdev_id="n0", fds=(5,))[1] == "tap,id=n0,fds=5"


def test_takes_the_fds_of_a_macvtap() -> None:
    assert qemu.argv(macvtap(2), netdev_id="n0", fds=[5, 6], vhost=True) == [
        "-netdev", "tap,id=n0,fds=5:6,vhost=on",
        "-device", f"virtio-net-pci,id=n0,netdev=n0,mac={MAC},mq=on,vectors=6",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="can't open the macvtap vdm0 by itself"):
        qemu.argv(macvtap(), netdev_id="n0")
    with pytest.raises(ValueError, match="has 1 queues, and 2 fds"):
        qemu.argv(macvtap(), netdev_id="n0", fds=[5, 6])


def test_is_told_of_a_missing_header() -> None:
    assert "vnet_hdr=off" in qemu.argv(tap(vnet_hdr=False), netdev_id="n0")[1]


def test_on_a_bridge() -> None:
    assert qemu.argv(bridge(), netdev_id="n0")[1] == "bridge,id=n0,br=br-blue"


def test_refuses_what_it_cannot_attach() -> None:
    with pytest.raises(UnacceptableEndpoint, match="is of kind ovs_port: QEMU attaches tap or vhost_user or"):
        qemu.argv(ovs_port(), netdev_id="n0")
    with pytest.raises(UnacceptableEndpoint, match="is of kind ovs_port"):
        qemu.plug(ovs_port(), netdev_id="n0")
    with pytest.raises(UnacceptableEndpoint, match="has no location yet"):
        qemu.argv(Endpoint(), netdev_id="n0")
    with pytest.raises(UnacceptableEndpoint, match="VLAN"):
        qemu.argv(bridge(VlanSpec(vid=7)), netdev_id="n0")


def test_refuses_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="netdev_id"):
        qemu.argv(tap(), netdev_id="n0,fds=3")
    with pytest.raises(ValueError, match="has 2 queues, and 1 fds"):
        qemu.argv(tap(queues=2), netdev_id="n0", fds=[5])
    with pytest.raises(ValueError, match="leave fds out"):
        qemu.argv(bridge(), netdev_id="n0", fds=[5])


@given(TEXT)
def test_reads_every_value_as_it_was(value: str) -> None:
    options = read_options(qemu.argv(tap(value), netdev_id="n0")[1])
    assert options == ["tap", "id=n0", f"ifname={value}", "script=no", "downscript=no"]


def test_a_pci_function_is_a_device_alone() -> None:
    assert qemu.argv(pci(), netdev_id="n0") == ["-device", "vfio-pci,id=n0,host=0000:03:10.2"]
    with pytest.raises(ValueError, match="is a pci, which has no queues to hand over"):
        qemu.argv(pci(), netdev_id="n0", fds=[5])


def test_a_vdpa_device() -> None:
    assert qemu.argv(vdpa(queues=2), netdev_id="n0", vhost=True) == [
        "-netdev", "vhost-vdpa,id=n0,vhostdev=/dev/vhost-vdpa-0,queues=2",
        "-device", f"virtio-net-pci,id=n0,netdev=n0,mac={MAC},mq=on,vectors=6",
    ]  # fmt: skip


@pytest.mark.parametrize(("server", "role"), [(False, ""), (True, ",server=on,wait=off")])
def test_a_vhost_user_socket(server: bool, role: str) -> None:
    assert qemu.argv(vhost_user("/run/a,b", queues=2, server=server), netdev_id="n0") == [
        "-chardev", f"socket,id=n0-chardev,path=/run/a,,b{role}",
        "-netdev", "vhost-user,id=n0,chardev=n0-chardev,queues=2",
        "-device", f"virtio-net-pci,id=n0,netdev=n0,mac={MAC},mq=on,vectors=6",
    ]  # fmt: skip
    assert qemu.shared_memory_argv(128) == [
        "-object", "memory-backend-memfd,id=shared-memory,size=128M,share=on",
        "-machine", "memory-backend=shared-memory",
    ]  # fmt: skip


def test_plugs_a_tap_by_its_queues() -> None:
    plug = qemu.plug(tap(queues=2), netdev_id="n0", device_options={"bus": "rp0"})
    assert plug.fd_names == ("n0-0", "n0-1")
    device = {"driver": "virtio-net-pci", "id": "n0", "netdev": "n0", "mac": MAC, "mq": True, "vectors": 6, "bus": "rp0"}
    assert plug.device == {"execute": "device_add", "arguments": device}
    assert plug.backend == (
        (
            {"execute": "netdev_add", "arguments": {"type": "tap", "id": "n0", "fds": "n0-0:n0-1"}},
            {"execute": "netdev_del", "arguments": {"id": "n0"}},
        ),
    )
    assert (plug.device_id, plug.link) == ("n0", ())


def test_plugs_a_tap_by_its_name() -> None:
    plug = qemu.plug(tap(vnet_hdr=False), netdev_id="n0", by_name=True, vhost=True)
    assert plug.fd_names == ()
    by_name = {"ifname": "vdt0", "script": "no", "downscript": "no", "vnet_hdr": False, "vhost": True}
    assert plug.backend[0][0]["arguments"] == {"type": "tap", "id": "n0", **by_name}
    with pytest.raises(ValueError, match="can't open the macvtap"):
        qemu.plug(macvtap(), netdev_id="n0", by_name=True)


def test_plugs_a_port_without_link_without_carrier() -> None:
    plug = qemu.plug(without_link(tap()), netdev_id="n0")
    assert plug.link == ({"execute": "set_link", "arguments": {"name": "n0", "up": False}},)


def test_plugs_a_vhost_user_socket() -> None:
    plug = qemu.plug(vhost_user(server=True), netdev_id="n0")
    chardev, netdev = plug.backend
    address = {"type": "unix", "data": {"path": "/run/v.sock"}}
    backend = {"type": "socket", "data": {"addr": address, "server": True, "wait": False}}
    assert chardev[0] == {"execute": "chardev-add", "arguments": {"id": "n0-chardev", "backend": backend}}
    assert chardev[1] == {"execute": "chardev-remove", "arguments": {"id": "n0-chardev"}}
    assert netdev[0]["arguments"] == {"type": "vhost-user", "id": "n0", "chardev": "n0-chardev"}
    client = qemu.plug(vhost_user(), netdev_id="n0").backend[0][0]["arguments"]["backend"]
    assert client["data"] == {"addr": address, "server": False}


def test_plugs_a_pci_function() -> None:
    plug = qemu.plug(pci(), netdev_id="n0", device_options={"bus": "rp0"})
    assert (plug.backend, plug.link, plug.fd_names) == ((), (), ())
    assert plug.device["arguments"] == {"driver": "vfio-pci", "id": "n0", "host": "0000:03:10.2", "bus": "rp0"}


@pytest.mark.parametrize("endpoint", [tap(), macvtap(), bridge(), pci(), vhost_user(), vdpa()])
def test_every_kind_that_it_accepts_is_configured_and_plugged(endpoint: Endpoint) -> None:
    assert endpoint.WhichOneof("location") in kinds(qemu.acceptable(shared_memory=True))
    fds = [5] if endpoint.WhichOneof("location") == "macvtap" else None
    assert qemu.argv(endpoint, netdev_id="n0", fds=fds)[-2] == "-device"
    assert qemu.plug(endpoint, netdev_id="n0").device["arguments"]["id"] == "n0"


def answers(netdevs: list[str], devices: list[str], objects: list[str] | None = None) -> tuple[Any, Any, Any]:
    schema = [
        {"name": "netdev_add", "arg-type": "100"},
        {"name": "object-add", "arg-type": "101"},
        {"name": "100", "variants": [{"case": name, "type": "1"} for name in netdevs]},
        {"name": "101", "variants": [{"case": name, "type": "1"} for name in objects or ["rng-random"]]},
        {"name": "1"},
    ]
    return {"qemu": {"major": 7, "minor": 2, "micro": 22}}, schema, [{"name": name} for name in devices]


def test_what_a_qemu_can_do_decides() -> None:
    capabilities = qemu.read_capabilities(*answers(["tap", "vhost-user", "user"], ["virtio-net-pci", "e1000"]))
    assert capabilities.version == (7, 2, 22)
    assert kinds(qemu.acceptable(shared_memory=True, capabilities=capabilities)) == ["tap", "vhost_user", "macvtap"]
    without_virtio = qemu.read_capabilities(*answers(["tap", "bridge"], ["vfio-pci"]))
    assert kinds(qemu.acceptable(capabilities=without_virtio)) == ["pci"]


# --- PCI functions


def function(**fields: str) -> Endpoint:
    endpoint = pci()
    endpoint.pci.vfio_path, endpoint.pci.vfio_device_path = "/dev/vfio/9", "/dev/vfio/devices/vfio3"
    for name, value in fields.items():
        setattr(endpoint, name, value)
    return endpoint


def test_iommufd_takes_a_qemu_that_knows_it_and_a_function_with_a_node_of_its_own() -> None:
    old = qemu.read_capabilities(*answers(["tap"], ["vfio-pci"]))
    new = qemu.read_capabilities(*answers(["tap"], ["vfio-pci"], ["rng-random", "iommufd"]))
    assert [qemu_pci.can_iommufd(function(), one) for one in (old, new)] == [False, True]
    assert not qemu_pci.can_iommufd(pci(), new)
    assert not qemu_pci.can_iommufd(tap(), new)


def test_a_function_is_taken_through_iommufd_at_the_start() -> None:
    options = qemu_pci.device_options(function(), iommufd_id="i0") | {"bus": "rp0"}
    assert [*qemu_pci.iommufd_argv("i0", 7), *qemu.argv(function(), netdev_id="n0", device_options=options)] == [
        "-object", "iommufd,id=i0,fd=7",
        "-device", "vfio-pci,id=n0,host=0000:03:10.2,iommufd=i0,bus=rp0",
    ]  # fmt: skip
    assert qemu_pci.iommufd_argv("i0") == ["-object", "iommufd,id=i0"]


def test_a_function_is_taken_through_iommufd_while_the_vm_runs() -> None:
    assert qemu_pci.add_iommufd("i0", "iommu") == {
        "execute": "object-add",
        "arguments": {"qom-type": "iommufd", "id": "i0", "fd": "iommu"},
    }
    assert qemu_pci.add_iommufd("i0")["arguments"] == {"qom-type": "iommufd", "id": "i0"}
    plug = qemu.plug(function(), netdev_id="n0", device_options=qemu_pci.device_options(function(), iommufd_id="i0"))
    assert plug.device["arguments"] == {"driver": "vfio-pci", "id": "n0", "host": "0000:03:10.2", "iommufd": "i0"}


def test_the_parts_of_a_pair_are_told_of_each_other() -> None:
    standby, primary = tap(), function(partner_endpoint_id="6f9619ff-8b86-4d01-b42d-00cf4fc964ff")
    standby.partner_endpoint_id = primary.endpoint_id
    assert qemu.argv(standby, netdev_id="n0")[-1].endswith(",failover=on")
    assert qemu.plug(standby, netdev_id="n0").device["arguments"]["failover"] is True
    options = qemu_pci.device_options(primary, standby_id="n0")
    assert qemu.argv(primary, netdev_id="f0", device_options=options)[-1].endswith(",failover_pair_id=n0")
    assert qemu_pci.device_options(primary) == {}


def test_what_a_function_has_not_is_refused() -> None:
    with pytest.raises(UnacceptableEndpoint, match="has no node for iommufd"):
        qemu_pci.device_options(pci(), iommufd_id="i0")
    with pytest.raises(UnacceptableEndpoint, match="is no PCI function of a pair"):
        qemu_pci.device_options(function(), standby_id="n0")
    with pytest.raises(UnacceptableEndpoint, match="is no PCI function of a pair"):
        qemu_pci.device_options(tap(), standby_id="n0")
