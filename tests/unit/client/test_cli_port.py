"""vifctl's options of a port, and the commands that change and check one."""

import json

import grpc
import pytest

from tests.unit.client.conftest import Vifctl
from tests.unit.client.fake_vifd import FakeVifd, make_status
from vifclient.messages import (
    Drift,
    DriftKind,
    GuardSpec,
    LimitsSpec,
    MacvtapMode,
    PciHostDriver,
    PortSpec,
    RateLimit,
    VlanProtocol,
    VlanSpec,
)

ID = "3f0c1e9a-7c52-4b0e-9d0e-8a1f5f3f2b61"
OTHER = "aaaaaaaa-7c52-4b0e-9d0e-8a1f5f3f2b61"
MTU = Drift(kind=DriftKind.DRIFT_KIND_MTU, expected="1500", actual="9000", message="somebody set the MTU to 9000")
GUARD = Drift(kind=DriftKind.DRIFT_KIND_GUARD, expected="in place", actual="missing", message="the guard is gone")

# Each option of a port, what it says, and its name in a mask.
OPTIONS = [
    (["--mtu", "9000"], PortSpec(mtu_bytes=9000), "mtu_bytes"),
    (["--address", "10.0.0.7", "--address", "fd00::/64"], PortSpec(addresses=["10.0.0.7", "fd00::/64"]), "addresses"),
    (["--public-address", "192.0.2.1"], PortSpec(public_addresses=["192.0.2.1"]), "public_addresses"),
    (["--no-guard"], PortSpec(guard=GuardSpec(enabled=False)), "guard"),
    (["--guard"], PortSpec(guard=GuardSpec(enabled=True)), "guard"),
    (["--vlan", "7"], PortSpec(vlan=VlanSpec(vid=7)), "vlan"),
    (["--trunk", "7,8"], PortSpec(vlan=VlanSpec(trunk_vids=[7, 8])), "vlan"),
    (["--trunk", "7", "--native-vlan", "9"], PortSpec(vlan=VlanSpec(trunk_vids=[7], native_vid=9)), "vlan"),
    (["--vlan", "7", "--vlan-qos", "3"], PortSpec(vlan=VlanSpec(vid=7, qos=3)), "vlan"),
    (
        ["--vlan", "7", "--vlan-protocol", "802.1ad"],
        PortSpec(vlan=VlanSpec(vid=7, protocol=VlanProtocol.VLAN_PROTOCOL_DOT1AD)),
        "vlan",
    ),
    (["--trusted"], PortSpec(trusted=True), "trusted"),
    (["--no-trusted"], PortSpec(trusted=False), "trusted"),
    (["--min-rate-from-vm", "10M"], PortSpec(limits=LimitsSpec(from_vm=RateLimit(min_rate_bps=10**7))), "limits"),
    (["--isolated"], PortSpec(isolated=True), "isolated"),
    (["--no-isolated"], PortSpec(isolated=False), "isolated"),
    (["--no-link"], PortSpec(link_up=False), "link_up"),
    (["--link"], PortSpec(link_up=True), "link_up"),
    (["--tx-queue-length", "500"], PortSpec(tx_queue_length=500), "tx_queue_length"),
    (["--rate-from-vm", "100M"], PortSpec(limits=LimitsSpec(from_vm=RateLimit(rate_bps=10**8))), "limits"),
    (["--rate-to-vm", "1.5g"], PortSpec(limits=LimitsSpec(to_vm=RateLimit(rate_bps=1_500_000_000))), "limits"),
    (["--pps-from-vm", "2k"], PortSpec(limits=LimitsSpec(from_vm=RateLimit(rate_pps=2000))), "limits"),
    (["--pps-to-vm", "77"], PortSpec(limits=LimitsSpec(to_vm=RateLimit(rate_pps=77))), "limits"),
    (
        ["--rate-from-vm", "1000", "--burst-from-vm", "64K"],
        PortSpec(limits=LimitsSpec(from_vm=RateLimit(rate_bps=1000, burst_bytes=64_000))),
        "limits",
    ),
    (
        ["--rate-to-vm", "1T", "--burst-to-vm", "1M"],
        PortSpec(limits=LimitsSpec(to_vm=RateLimit(rate_bps=10**12, burst_bytes=10**6))),
        "limits",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("options", "port", "_path"), OPTIONS)
def test_request_carries_the_port(vifctl: Vifctl, vifd: FakeVifd, options: list[str], port: PortSpec, _path: str) -> None:
    assert vifctl("request", "default", *options).status == 0
    assert vifd.requests[0].port == port


def test_a_request_without_options_leaves_everything_to_vifd(vifctl: Vifctl, vifd: FakeVifd) -> None:
    vifctl("request", "default")
    assert vifd.requests[0].port == PortSpec()


@pytest.mark.parametrize(("options", "port", "path"), OPTIONS)
def test_update_names_what_is_given_and_nothing_else(
    vifctl: Vifctl, vifd: FakeVifd, options: list[str], port: PortSpec, path: str
) -> None:
    vifctl("request", "default", "--id", ID)
    assert vifctl("update", ID, *options).status == 0
    assert (vifd.requests[-1].endpoint_id, vifd.requests[-1].port) == (ID, port)
    assert list(vifd.requests[-1].update_mask.paths) == [path]


def test_a_vf_is_asked_for_with_its_driver_near_the_vms_memory(vifctl: Vifctl, vifd: FakeVifd) -> None:
    vifctl("request", "default", "--kind", "pci", "--pci-driver", "kernel", "--numa-node", "0")  # the fake makes none
    request = vifd.requests[0]
    assert request.acceptable[0].pci.host_driver == PciHostDriver.PCI_HOST_DRIVER_KERNEL
    assert request.instance.HasField("numa_node")
    assert request.instance.numa_node == 0
    wrong = vifctl("request", "default", "--pci-driver", "vfio")
    assert wrong.status == 2
    assert "has a host driver: tap" in wrong.err


@pytest.mark.parametrize("option", [["--vlan-qos", "3"], ["--vlan-protocol", "802.1ad"], ["--trunk", "7", "--vlan-qos", "3"]])
def test_what_a_card_puts_on_goes_with_a_vlan(vifctl: Vifctl, vifd: FakeVifd, option: list[str]) -> None:
    answer = vifctl("request", "default", *option)
    assert answer.status == 2
    assert "go with --vlan" in answer.err
    assert vifd.requests == []


def test_public_addresses_and_macvtap_modes_are_asked_for(vifctl: Vifctl, vifd: FakeVifd) -> None:
    addresses = ["--public-address", "192.0.2.1", "--public-address", "192.0.2.2"]
    vifctl("request", "default", "--kind", "macvtap", "--kind", "tap", "--macvtap-mode", "vepa", *addresses)
    assert list(vifd.requests[0].port.public_addresses) == ["192.0.2.1", "192.0.2.2"]
    assert vifd.requests[0].acceptable[0].macvtap.mode == MacvtapMode.MACVTAP_MODE_VEPA
    vifctl("run", "default", "--macvtap-mode", "private", "--", "true")
    assert [one.WhichOneof("kind") for one in vifd.requests[1].acceptable] == ["macvtap"]


def test_update_takes_things_off(vifctl: Vifctl, vifd: FakeVifd) -> None:
    given = ["--address", "10.0.0.7", "--public-address", "192.0.2.1", "--rate-to-vm", "1M", "--vlan", "7", "--isolated"]
    vifctl("request", "default", "--id", ID, *given)
    removed = ["--no-addresses", "--no-public-addresses", "--no-limits", "--no-vlan", "--no-isolated"]
    result = vifctl("update", ID, *removed, "--json")
    assert sorted(vifd.requests[-1].update_mask.paths) == ["addresses", "isolated", "limits", "public_addresses", "vlan"]
    assert vifd.requests[-1].port == PortSpec(isolated=False)
    port = result.json["endpoint"]["port"]
    assert (port["addresses"], "limits" in port, "vlan" in port) == ([], False, False)
    assert "GetEndpoint" not in vifd.calls  # there is nothing to keep


@pytest.mark.parametrize(
    ("options", "limits"),
    [
        (
            ["--rate-to-vm", "2M"],
            LimitsSpec(from_vm=RateLimit(rate_bps=10**6, burst_bytes=9000, rate_pps=5), to_vm=RateLimit(rate_bps=2 * 10**6)),
        ),
        (["--rate-from-vm", "0"], LimitsSpec(from_vm=RateLimit(rate_pps=5))),
        (["--pps-from-vm", "0"], LimitsSpec(from_vm=RateLimit(rate_bps=10**6, burst_bytes=9000))),
        (["--rate-from-vm", "0", "--pps-from-vm", "0"], None),
    ],
)
def test_limits_that_are_not_given_stay(vifctl: Vifctl, vifd: FakeVifd, options: list[str], limits: LimitsSpec | None) -> None:
    vifctl("request", "default", "--id", ID, "--rate-from-vm", "1M", "--burst-from-vm", "9k", "--pps-from-vm", "5")
    vifctl("update", ID, *options)
    assert vifd.requests[-1].port == PortSpec(limits=limits)
    assert list(vifd.requests[-1].update_mask.paths) == ["limits"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--address", "10.0.0.300"], "'10.0.0.300' is no IP address"),
        (["--vlan", "4095"], "4095"),
        (["--vlan", "0"], "0"),
        (["--trunk", "7,x"], "'x' is no VLAN: write 1 to 4094"),
        (["--trunk", "7,,8"], "'' is no VLAN"),
        (["--trunk", "4095"], "'4095' is no VLAN"),
        (["--trunk", "7,8,7"], "VLAN 7 is there twice"),
        (["--trunk", "7", "--vlan", "7"], "--vlan and --trunk exclude each other"),
        (["--native-vlan", "7"], "--native-vlan goes with --trunk"),
        (["--rate-from-vm", "fast"], "'fast' is no number of bits per second: write 1500, 64k, 100M or 1.5G"),
        (["--rate-from-vm", "-1"], "'-1' is no number"),
        (["--rate-from-vm", "1.0005k"], "1.0005k is no whole number"),
        (["--rate-to-vm", "2T"], "2T is not"),
        (["--burst-to-vm", "5G"], "5G is not"),
        (["--tx-queue-length", "0"], "0"),
    ],
)
@pytest.mark.parametrize("command", [["request", "default"], ["update", ID]])
def test_a_wrong_port(vifctl: Vifctl, vifd: FakeVifd, command: list[str], options: list[str], words: str) -> None:
    result = vifctl(*command, *options, "--json")
    assert result.status == 2
    assert words in json.loads(result.err)["error"]["message"]
    assert vifd.calls == []


def test_a_limit_of_nothing_is_no_limit_to_ask_for(vifctl: Vifctl) -> None:
    assert "0 is not 1 to 1099511627776 bits per second" in vifctl("request", "default", "--rate-from-vm", "0").err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "Nothing to change"),
        (["--no-limits", "--rate-to-vm", "1M"], "--no-limits can't go together"),
        (["--no-vlan", "--trunk", "7"], "--no-vlan can't go together"),
        (["--no-addresses", "--address", "10.0.0.7"], "--no-addresses can't go together"),
        (["--no-public-addresses", "--public-address", "192.0.2.1"], "--no-public-addresses can't go together"),
    ],
)
def test_a_wrong_change(vifctl: Vifctl, vifd: FakeVifd, options: list[str], words: str) -> None:
    result = vifctl("update", ID, *options)
    assert result.status == 2
    assert words in result.err
    assert vifd.calls == []


def test_no_kind_has_a_macvtap_mode(vifctl: Vifctl) -> None:
    assert "No kind that is asked for has a macvtap mode: tap." in vifctl("request", "default", "--macvtap-mode", "vepa").err


def test_the_help_groups_the_options(vifctl: Vifctl) -> None:
    _, port, rest = vifctl("update", "--help").out.replace("\nPort:", "\0").replace("\nLimits:", "\0").split("\0")
    assert "--no-vlan" in port
    assert "--no-limits" in rest
    assert "[default: the network's]" not in port  # what isn't given stays
    assert "[default: the network's]" in vifctl("request", "--help").out


def test_check_of_endpoints_that_are_well(vifctl: Vifctl, vifd: FakeVifd) -> None:
    vifctl("request", "default", "--id", ID)
    assert (vifctl("check").status, vifctl("check", ID).status, vifctl("check", ID).out) == (0, 0, "")
    result = vifctl("check", ID, ID, "--json")
    assert [(one["drifts"], one["endpoint"]["endpoint_id"]) for one in result.json["checks"]] == [([], ID)]
    assert not any(request.repair for request in vifd.requests if hasattr(request, "repair"))


def test_check_lists_what_differs(vifctl: Vifctl, vifd: FakeVifd) -> None:
    for endpoint_id in (ID, OTHER):
        vifctl("request", "default", "--id", endpoint_id)
    vifd.endpoints[ID].drifts.append(MTU)
    vifd.endpoints[OTHER].drifts.append(GUARD)
    result = vifctl("check")
    assert result.status == 1
    heading, first, second = (line.split(maxsplit=4) for line in result.out.splitlines())
    assert heading == ["ENDPOINT", "KIND", "EXPECTED", "ACTUAL", "WHAT"]
    assert first == [ID, "mtu", "1500", "9000", "somebody set the MTU to 9000"]
    assert second[:2] == [OTHER, "guard"]
    assert vifctl("check", OTHER).out.count("\n") == 2
    result = vifctl("check", ID, "--json")
    assert (result.status, result.json["checks"][0]["drifts"][0]["kind"]) == (1, "DRIFT_KIND_MTU")


def test_check_mends(vifctl: Vifctl, vifd: FakeVifd) -> None:
    vifctl("request", "default", "--id", ID)
    vifd.endpoints[ID].drifts.extend([MTU, GUARD])
    vifd.beyond_repair = {DriftKind.DRIFT_KIND_GUARD}
    result = vifctl("check", "--repair")
    assert result.status == 1
    rows = [line.split(maxsplit=3) for line in result.out.splitlines()]
    assert "mended" in rows[1][3]
    assert "differs" in rows[2][3]
    vifd.beyond_repair = set()
    assert (vifctl("check", ID, "--repair").status, vifctl("check").status) == (0, 0)


def test_an_endpoint_that_goes_meanwhile_is_no_error_unless_it_is_named(vifctl: Vifctl, vifd: FakeVifd) -> None:
    for endpoint_id in (ID, OTHER):
        vifctl("request", "default", "--id", endpoint_id)
    vifd.failures_of["CheckEndpoint"] = [make_status(grpc.StatusCode.NOT_FOUND, "it is gone", "UNKNOWN_ENDPOINT")]
    result = vifctl("check", "--json")
    assert [one["endpoint"]["endpoint_id"] for one in result.json["checks"]] == [OTHER]
    assert result.status == 0
    del vifd.endpoints[ID]
    result = vifctl("check", OTHER, ID)
    assert (result.status, ID in result.err) == (1, True)
