import pytest

from tests.unit.client.hypervisors.examples import MAC, bridge, kinds, macvtap, ovs_port, pci, tap, vdpa, vhost_user
from tests.unit.client.hypervisors.schemas import validate
from vifclient.hypervisors import UnacceptableEndpoint, firecracker
from vifclient.messages import Endpoint


def test_accepts_a_tap_with_one_queue() -> None:
    assert kinds(firecracker.acceptable()) == ["tap"]
    assert (firecracker.acceptable()[0].tap.queues, firecracker.acceptable()[0].tap.vnet_hdr) == (1, True)


@pytest.mark.parametrize(("mtu_bytes", "more"), [(1500, {}), (0, {}), (9000, {"mtu": 9000})])
def test_gives_a_vm_a_tap(mtu_bytes: int, more: dict[str, int]) -> None:
    request = firecracker.add(tap(mtu_bytes=mtu_bytes), iface_id="net0")
    assert (request.method, request.path) == ("PUT", "/network-interfaces/net0")
    assert request.body == {"iface_id": "net0", "host_dev_name": "vdt0", "guest_mac": MAC, **more}
    validate("firecracker", "NetworkInterface", request.body)


def test_limits_are_not_said_twice() -> None:
    endpoint = tap()
    endpoint.port.limits.from_vm.rate_bps = 10**8
    assert firecracker.add(endpoint, iface_id="net0") == firecracker.add(tap(), iface_id="net0")


def test_an_old_one_cannot_tell_the_guest_its_mtu() -> None:
    with pytest.raises(UnacceptableEndpoint, match=r"an MTU of 9000 bytes, which Firecracker 1.15.2 can't tell"):
        firecracker.add(tap(mtu_bytes=9000), iface_id="net0", version=(1, 15, 2))
    assert firecracker.add(tap(), iface_id="net0", version=(1, 15, 2)) == firecracker.add(tap(), iface_id="net0")


def test_asks_for_the_version() -> None:
    answer = {"firecracker_version": "1.17.0-dev"}
    validate("firecracker", "FirecrackerVersion", answer)
    assert firecracker.ask_version().path == "/version"
    assert firecracker.read_version(answer) == (1, 17, 0)


@pytest.mark.parametrize("endpoint", [macvtap(), bridge(), pci(), ovs_port(), vhost_user(), vdpa()])
def test_refuses_what_it_cannot_attach(endpoint: Endpoint) -> None:
    with pytest.raises(UnacceptableEndpoint, match="Firecracker attaches tap"):
        firecracker.add(endpoint, iface_id="net0")


def test_refuses_a_tap_with_several_queues() -> None:
    with pytest.raises(UnacceptableEndpoint, match="the tap vdt0 has several queues"):
        firecracker.add(tap(queues=2), iface_id="net0")


@pytest.mark.parametrize("iface_id", ["", "net-0", "a/b"])
def test_refuses_an_id_that_firecracker_would(iface_id: str) -> None:
    with pytest.raises(ValueError, match="iface_id"):
        firecracker.add(tap(), iface_id=iface_id)
