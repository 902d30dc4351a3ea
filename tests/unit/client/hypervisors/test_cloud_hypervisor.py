import pytest
from jsonschema import ValidationError

from tests.unit.client.hypervisors.examples import (
    MAC,
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
from tests.unit.client.hypervisors.schemas import validate
from vifclient.hypervisors import UnacceptableEndpoint, cloud_hypervisor
from vifclient.messages import Endpoint

DEFINITIONS = {"net": "NetConfig", "vdpa": "VdpaConfig", "device": "DeviceConfig"}


def test_accepts() -> None:
    assert kinds(cloud_hypervisor.acceptable()) == ["tap", "vdpa", "macvtap", "pci"]
    several = cloud_hypervisor.acceptable(queues=2, shared_memory=True)
    assert kinds(several) == ["tap", "vhost_user", "vdpa", "macvtap", "pci"]
    assert (several[0].tap.queues, several[1].vhost_user.queues, several[2].vdpa.queues) == (2, 2, 2)


@pytest.mark.parametrize(
    ("endpoint", "fds", "argv", "body"),
    [
        (
            tap(queues=2, mtu_bytes=9000),
            None,
            ["--net", f"id=n0,mac={MAC},tap=vdt0,num_queues=4"],
            {"id": "n0", "mac": MAC, "tap": "vdt0", "num_queues": 4},
        ),
        (
            tap(queues=2),
            [5, 6],
            ["--net", f"id=n0,mac={MAC},num_queues=4,fd=[5,6]"],
            {"id": "n0", "mac": MAC, "num_queues": 4},
        ),
        (macvtap(), [5], ["--net", f"id=n0,mac={MAC},num_queues=2,fd=[5]"], {"id": "n0", "mac": MAC, "num_queues": 2}),
        (
            vhost_user(),
            None,
            ["--net", f"id=n0,mac={MAC},vhost_user=on,socket=/run/v.sock,vhost_mode=Client,num_queues=2,mtu=1500"],
            {
                "id": "n0",
                "mac": MAC,
                "vhost_user": True,
                "vhost_socket": "/run/v.sock",
                "vhost_mode": "Client",
                "num_queues": 2,
                "mtu": 1500,
            },
        ),
        (
            vdpa(queues=2),
            None,
            ["--vdpa", "id=n0,path=/dev/vhost-vdpa-0,num_queues=4"],
            {"id": "n0", "path": "/dev/vhost-vdpa-0", "num_queues": 4},
        ),
        (
            pci(),
            None,
            ["--device", "id=n0,path=/sys/bus/pci/devices/0000:03:10.2/"],
            {"id": "n0", "path": "/sys/bus/pci/devices/0000:03:10.2/"},
        ),
    ],
)
def test_configures_every_kind(endpoint: Endpoint, fds: list[int] | None, argv: list[str], body: dict) -> None:
    assert endpoint.WhichOneof("location") in kinds(cloud_hypervisor.acceptable(shared_memory=True))
    assert cloud_hypervisor.argv(endpoint, device_id="n0", fds=fds) == argv
    request = cloud_hypervisor.add(endpoint, device_id="n0", fds=fds)
    what = argv[0].removeprefix("--")
    assert (request.method, request.path, request.body) == ("PUT", f"/api/v1/vm.add-{what}", body)
    validate("cloud_hypervisor", DEFINITIONS[what], request.body)


def test_plays_the_server_of_a_vhost_user_socket() -> None:
    request = cloud_hypervisor.add(vhost_user(server=True), device_id="n0")
    assert request.body is not None
    assert request.body["vhost_mode"] == "Server"


def test_unplugs() -> None:
    request = cloud_hypervisor.remove("n0")
    assert (request.method, request.path, request.body) == ("PUT", "/api/v1/vm.remove-device", {"id": "n0"})
    validate("cloud_hypervisor", "VmRemoveDevice", request.body)


def test_finds_what_is_plugged() -> None:
    assert cloud_hypervisor.info().path == "/api/v1/vm.info"
    config = {"net": [{"id": "n0"}, {"tap": "x"}], "vdpa": None, "devices": [{"id": "n1"}], "disks": [{"id": "d"}]}
    assert cloud_hypervisor.device_ids({"config": config}) == ["n0", "n1"]


@pytest.mark.parametrize("endpoint", [bridge(), ovs_port()])
def test_refuses_what_it_cannot_attach(endpoint: Endpoint) -> None:
    with pytest.raises(UnacceptableEndpoint, match="Cloud Hypervisor attaches tap or vhost_user or vdpa or macvtap or pci"):
        cloud_hypervisor.argv(endpoint, device_id="n0")
    with pytest.raises(UnacceptableEndpoint, match="Cloud Hypervisor attaches"):
        cloud_hypervisor.add(endpoint, device_id="n0")


def test_refuses_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="has 2 queues, and 1 fds"):
        cloud_hypervisor.add(tap(queues=2), device_id="n0", fds=[5])
    with pytest.raises(ValueError, match="is a vdpa, which has no queues to hand over"):
        cloud_hypervisor.argv(vdpa(), device_id="n0", fds=[5])
    with pytest.raises(ValueError, match="can't open the macvtap vdm0 by itself"):
        cloud_hypervisor.add(macvtap(), device_id="n0")
    with pytest.raises(UnacceptableEndpoint, match="no virtio-net header"):
        cloud_hypervisor.add(tap(vnet_hdr=False), device_id="n0", fds=[5])


def test_never_sets_a_tap_up_that_is_down() -> None:
    endpoint = without_link(tap())
    with pytest.raises(ValueError, match="the tap vdt0 is down"):
        cloud_hypervisor.argv(endpoint, device_id="n0")
    assert cloud_hypervisor.argv(endpoint, device_id="n0", fds=[5]) == ["--net", f"id=n0,mac={MAC},num_queues=2,fd=[5]"]


@pytest.mark.parametrize("path", ["/run/a,b", '/run/"a', "/run/[a"])
def test_what_would_split_an_argument_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="can't have any of"):
        cloud_hypervisor.argv(vhost_user(path), device_id="n0")
    request = cloud_hypervisor.add(vhost_user(path), device_id="n0")
    assert request.body is not None
    assert request.body["vhost_socket"] == path


def test_the_description_refuses_what_is_not_in_it() -> None:
    with pytest.raises(ValidationError):
        validate("cloud_hypervisor", "NetConfig", {"taps": "vdt0"})
    with pytest.raises(ValidationError):
        validate("cloud_hypervisor", "VdpaConfig", {"path": "/dev/vhost-vdpa-0"})
