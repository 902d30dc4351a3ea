import io
import re
from datetime import UTC, datetime

import pytest
from rich.console import Console

from vifclient.cli import words
from vifclient.cli.quantities import show_quantity
from vifclient.cli.tables import Tables
from vifclient.messages import (
    BridgePort,
    CheckEndpointResponse,
    Consideration,
    ConsiderationOutcome,
    Drift,
    DriftKind,
    Endpoint,
    EndpointKind,
    EndpointState,
    EswitchMode,
    GetHostInfoResponse,
    GuardSpec,
    Instance,
    IpConfig,
    LimitsMechanism,
    LimitsSpec,
    Network,
    PciDevice,
    PhysicalFunction,
    PortSpec,
    RateLimit,
    RequestEndpointResponse,
    TapDevice,
    VhostUserSocket,
    VirtualFunction,
    VlanProtocol,
    VlanSpec,
    WatchEndpointsResponse,
    WatchEventKind,
)

ID = "3f0c1e9a-7c52-4b0e-9d0e-8a1f5f3f2b61"
ENDPOINT = Endpoint(
    endpoint_id=ID,
    generation=1,
    network="blue",
    network_driver="fake",
    state=EndpointState.ENDPOINT_STATE_ACTIVE,
    tap=TapDevice(ifname="vdt3k9x2mq7ab", queues=1),
    port=PortSpec(mac="52:54:00:12:34:56", mtu_bytes=1500),
    instance=Instance(name="[red]web1[/red]"),
)


def plain_lines(file: io.StringIO) -> list[str]:
    return re.sub(r"\x1b\[[0-9;]*m", "", file.getvalue()).splitlines()


def make_tables(width: int = 200) -> tuple[Tables, io.StringIO]:
    file = io.StringIO()
    return Tables(Console(file=file, width=10_000, highlight=False, force_terminal=True, _environ={}), width), file


def test_a_list_on_a_wide_terminal_is_in_colour() -> None:
    tables, file = make_tables()
    tables.endpoints([ENDPOINT])
    assert "\x1b[1;36mactive" in file.getvalue()
    assert "[red]web1[/red]" in file.getvalue()  # what callers write is shown, not obeyed


@pytest.mark.parametrize(
    ("width", "gone"),
    [
        (200, set()),
        (113, {"AGE"}),
        (100, {"AGE", "MAC"}),
        (80, {"AGE", "MAC", "KIND"}),
        (20, {"AGE", "MAC", "KIND"}),
    ],
)
def test_a_list_has_the_columns_that_there_is_room_for(width: int, gone: set[str]) -> None:
    tables, file = make_tables(width)
    tables.endpoints([ENDPOINT])
    assert {name for name in ("AGE", "MAC", "KIND") if name not in file.getvalue()} == gone
    assert ID in file.getvalue()
    assert "vdt3k9x2mq7ab" in file.getvalue()


@pytest.mark.parametrize(
    ("width", "gone"),
    [(200, set()), (124, {"AGE"}), (105, {"AGE", "MAC"}), (99, {"AGE", "MAC", "KIND"}), (80, {"AGE", "MAC", "KIND", "ADDRESS"})],
)
def test_a_list_has_addresses_where_there_are_any(width: int, gone: set[str]) -> None:
    tables, file = make_tables(width)
    endpoint = with_port(PortSpec(addresses=["10.0.0.7", "10.0.0.8", "fd00::7"]))
    tables.endpoints([ENDPOINT, endpoint])
    assert {name for name in ("AGE", "MAC", "KIND", "ADDRESS") if name not in file.getvalue()} == gone
    assert ("10.0.0.7 +2" in file.getvalue()) == ("ADDRESS" not in gone)


def test_a_list_without_addresses_has_no_column_for_them() -> None:
    tables, file = make_tables()
    tables.endpoints([ENDPOINT])
    assert "ADDRESS" not in file.getvalue()


def with_port(port: PortSpec) -> Endpoint:
    endpoint = Endpoint()
    endpoint.CopyFrom(ENDPOINT)
    endpoint.port.MergeFrom(port)
    return endpoint


def shown(endpoint: Endpoint) -> dict[str, str]:
    """What `show` says of an endpoint, without colours, by the name of the line."""
    file = io.StringIO()
    Tables(Console(file=file, width=10_000, highlight=False, _environ={}), None).endpoint(endpoint)
    lines = file.getvalue().splitlines()
    width = max(line.index("k=ok") for line in lines if line.startswith("labels"))
    return {line[:width].rstrip(): line[width:].strip() for line in lines}


def test_everything_of_a_port_is_shown() -> None:
    endpoint = with_port(
        PortSpec(
            addresses=["10.0.0.7", "fd00::/64"],
            public_addresses=["192.0.2.1"],
            guard=GuardSpec(enabled=True),
            limits=LimitsSpec(
                from_vm=RateLimit(rate_bps=10**8, burst_bytes=64_000, rate_pps=1000), to_vm=RateLimit(rate_bps=1_500_000_000)
            ),
            vlan=VlanSpec(vid=7),
            isolated=True,
            link_up=False,
            tx_queue_length=500,
        )
    )
    config = IpConfig(addresses=["10.0.0.7/24"], gateways=["10.0.0.1"], dns_servers=["10.0.0.1", "10.0.0.2"], dhcp=True)
    endpoint.ip_config.CopyFrom(config)
    endpoint.labels["k"] = "ok"
    lines = shown(endpoint)
    assert {
        "addresses": "10.0.0.7, fd00::/64",
        "public addresses": "192.0.2.1",
        "guard": "on",
        "limit from vm": "100 Mbit/s, burst 64 kB, 1000 frames/s",
        "limit to vm": "1.5 Gbit/s",
        "vlan": "7",
        "isolated": "yes",
        "link": "down",
        "tx queue": "500 frames",
        "guest has": "10.0.0.7/24 via 10.0.0.1; DNS 10.0.0.1, 10.0.0.2; by DHCP",
    }.items() <= lines.items()


def test_a_location_is_shown_as_it_is_written() -> None:
    tables, file = make_tables()
    bridge = BridgePort(bridge_name="br-Blue", suggested_ifname="vdb0", vlan=VlanSpec(trunk_vids=[7, 8], native_vid=9))
    tables.endpoint(Endpoint(endpoint_id=ID, bridge=bridge))
    tables.endpoint(Endpoint(endpoint_id=ID, vhost_user=VhostUserSocket(socket_path="/run/VPP/v.sock")))
    tables.endpoint(Endpoint(endpoint_id=ID, tap=TapDevice(ifname="vdt0", vnet_hdr=True)))
    shown = file.getvalue()
    for text in ("br-Blue", "trunk of 7, 8; untagged in 9", "/run/VPP/v.sock", "true"):
        assert text in shown


def test_what_a_port_has_not_is_not_shown() -> None:
    endpoint = with_port(PortSpec(guard=GuardSpec(enabled=False), isolated=False, link_up=True))
    endpoint.labels["k"] = "ok"
    lines = shown(endpoint)
    assert (lines["guard"], lines["link"]) == ("off", "up")
    assert not {"limit from vm", "limit to vm", "vlan", "isolated", "tx queue", "addresses", "guest has"} & lines.keys()


@pytest.mark.parametrize(
    ("vlan", "line"),
    [
        (VlanSpec(vid=7), "7"),
        (VlanSpec(trunk_vids=[7, 8]), "trunk of 7, 8"),
        (VlanSpec(trunk_vids=[7], native_vid=9), "trunk of 7; untagged in 9"),
    ],
)
def test_vlans(vlan: VlanSpec, line: str) -> None:
    assert words.vlan_line(vlan) == line


def test_an_ip_config_that_nobody_tells_the_guest() -> None:
    assert words.ip_config_line(IpConfig(addresses=["10.0.0.7/24"])) == "10.0.0.7/24; nobody tells the guest"
    assert words.ip_config_line(IpConfig(dhcp=True)) == "no address; by DHCP"


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 bit/s"),
        (999, "999 bit/s"),
        (1000, "1 kbit/s"),
        (10**8, "100 Mbit/s"),
        (1_234_000_000, "1.234 Gbit/s"),
        (1_234_567, "1234.567 kbit/s"),
        (1_234_567_891, "1234567.891 kbit/s"),
        (10_000_000_000_001, "10000000000.001 kbit/s"),
        (1_099_511_627_776, "1099511627.776 kbit/s"),
    ],
)
def test_quantities_are_shown_exactly(number: int, text: str) -> None:
    assert show_quantity(number, "bit/s") == text


@pytest.mark.parametrize(
    ("mechanism", "line"),
    [
        (LimitsMechanism.LIMITS_MECHANISM_IFB, "ifb: what a VM sends too much of waits"),
        (LimitsMechanism.LIMITS_MECHANISM_NFTABLES, "nftables: what a VM sends too much of is dropped"),
        (LimitsMechanism.LIMITS_MECHANISM_UNSPECIFIED, "can't limit what VMs send"),
        (LimitsMechanism.ValueType(77), "77"),
    ],
)
def test_a_host_says_how_it_keeps_limits(mechanism: LimitsMechanism.ValueType, line: str) -> None:
    tables, file = make_tables()
    tables.host(GetHostInfoResponse(limits_mechanism=mechanism))
    assert line in file.getvalue()


PF = PhysicalFunction(
    ifname="ens1f0",
    address="0000:01:00.0",
    numa_node=0,
    up=True,
    carrier=True,
    total_vfs=7,
    eswitch_mode=EswitchMode.ESWITCH_MODE_SWITCHDEV,
    virtual_functions=[
        VirtualFunction(address="0000:01:10.0", iommu_group=0, driver="vfio-pci", state=2, endpoint_id=ENDPOINT.endpoint_id),
        VirtualFunction(address="0000:01:10.2", vf_index=1, state=3, message="libvirt has it"),
    ],
)


def test_a_host_tells_of_its_pfs_and_vfs() -> None:
    tables, file = make_tables()
    gone = PhysicalFunction(ifname="ens9f0", message="PF ens9f0 isn't there")
    down = PhysicalFunction(address="0000:05:00.0", total_vfs=8)
    fast = Network(name="fast", network_driver="sriov", physical_network="core", physical_functions=[PF, gone, down])
    tables.host(GetHostInfoResponse(networks=[fast]))
    lines = [line.split() for line in plain_lines(file)]
    start = lines.index(["NETWORK", "PF", "ADDRESS", "NUMA", "LINK", "ESWITCH", "VFS", "PROBLEM"])
    assert lines[start + 1 :] == [
        ["fast", "(core)", "ens1f0", "0000:01:00.0", "0", "up", "switchdev", "2/7"],
        ["fast", "(core)", "ens9f0", "-", "-", "-", "-", "-", "PF", "ens9f0", "isn't", "there"],
        ["fast", "(core)", "-", "0000:05:00.0", "-", "down", "-", "0/8"],
        [],
        ["PF", "VF", "ADDRESS", "IOMMU", "DRIVER", "STATE", "ENDPOINT", "WHY"],
        ["ens1f0", "0", "0000:01:10.0", "0", "vfio-pci", "in", "use", ENDPOINT.endpoint_id],
        ["ens1f0", "1", "0000:01:10.2", "-", "-", "taken", "libvirt", "has", "it"],
    ]


def test_a_host_without_pfs_says_nothing_of_them() -> None:
    tables, file = make_tables()
    tables.host(GetHostInfoResponse(networks=[Network(name="blue")]))
    assert "IOMMU" not in file.getvalue()


@pytest.mark.parametrize(
    ("port", "line"),
    [
        (PortSpec(vlan=VlanSpec(vid=7, qos=3, protocol=VlanProtocol.VLAN_PROTOCOL_DOT1AD)), "vlan 7, priority 3, 802.1ad"),
        (PortSpec(trusted=True), "trusted yes"),
        (
            PortSpec(limits=LimitsSpec(from_vm=RateLimit(rate_bps=10**9, min_rate_bps=10**8))),
            "limit from vm 1 Gbit/s, at least 100 Mbit/s",
        ),
    ],
)
def test_what_a_vf_is_like_is_shown(port: PortSpec, line: str) -> None:
    tables, file = make_tables()
    tables.endpoint(Endpoint(port=port, instance=Instance(name="web1", numa_node=0)))
    shown = [" ".join(line.split()) for line in plain_lines(file)]
    assert line in shown
    assert "instance web1, NUMA node 0" in shown


def drifting(*kinds: DriftKind.ValueType) -> Endpoint:
    endpoint = Endpoint()
    endpoint.CopyFrom(ENDPOINT)
    endpoint.drifts.extend(Drift(kind=kind) for kind in kinds)
    return endpoint


def test_a_watch_says_what_differs_and_when_it_is_mended() -> None:
    tables, file = make_tables()
    bad = drifting(DriftKind.DRIFT_KIND_MTU, DriftKind.DRIFT_KIND_TX_QUEUE_LENGTH)
    for endpoint in (ENDPOINT, bad, ENDPOINT, ENDPOINT):
        tables.event(WatchEndpointsResponse(kind=WatchEventKind.WATCH_EVENT_KIND_CHANGED, endpoint=endpoint))
    well, differs, mended, well_again = file.getvalue().splitlines()
    assert "differs: mtu, tx queue length" in differs
    assert "mended" in mended
    assert not any(word in line for line in (well, well_again) for word in ("mended", "differs"))


def test_a_check_without_drifts_says_so_on_a_terminal() -> None:
    tables, file = make_tables()
    tables.checked([CheckEndpointResponse(endpoint=ENDPOINT)], repair=False)
    assert "Nothing differs." in file.getvalue()


def test_empty_answers_are_explained() -> None:
    tables, file = make_tables()
    tables.endpoints([])
    assert "There are no endpoints that you may see." in file.getvalue()


def test_what_to_do_with_a_new_endpoint() -> None:
    tables, file = make_tables()
    tables.requested(RequestEndpointResponse(endpoint=ENDPOINT))
    assert f"Take it down with: vifctl release {ID}" in file.getvalue()


def test_why_it_is_of_this_kind() -> None:
    tables, file = make_tables()
    first = Consideration(
        kind=EndpointKind.ENDPOINT_KIND_PCI,
        outcome=ConsiderationOutcome.CONSIDERATION_OUTCOME_FORBIDDEN_BY_POLICY,
        message="not for you",
    )
    second = Consideration(kind=EndpointKind.ENDPOINT_KIND_TAP, outcome=ConsiderationOutcome.CONSIDERATION_OUTCOME_CHOSEN)
    tables.requested(RequestEndpointResponse(endpoint=ENDPOINT, considered=[first, second]))
    assert "forbidden by policy" in file.getvalue()
    assert "not for you" in file.getvalue()


def test_a_watch_says_where_changes_begin() -> None:
    tables, file = make_tables()
    tables.event(WatchEndpointsResponse(kind=WatchEventKind.WATCH_EVENT_KIND_SYNCED))
    tables.event(WatchEndpointsResponse(kind=WatchEventKind.WATCH_EVENT_KIND_REMOVED, endpoint=ENDPOINT))
    synced, removed = file.getvalue().splitlines()
    assert "changes follow" in synced
    assert "removed" in removed
    assert "vdt3k9x2mq7ab" in removed


def test_a_value_of_a_later_vifd_is_its_number() -> None:
    assert words.enum_word(EndpointState.DESCRIPTOR, 77) == "77"


def test_devices_of_every_kind_have_a_name() -> None:
    assert words.device_name(ENDPOINT) == "vdt3k9x2mq7ab"
    assert words.device_name(Endpoint(pci=PciDevice(address="0000:03:10.2"))) == "0000:03:10.2"
    assert words.device_name(Endpoint()) == ""


@pytest.mark.parametrize(("seconds", "text"), [(-5, "0s"), (5, "5s"), (65, "1m"), (7300, "2h"), (200_000, "2d")])
def test_ages(seconds: int, text: str) -> None:
    endpoint = Endpoint()
    endpoint.create_time.FromSeconds(1_000_000)
    assert words.age(endpoint, datetime.fromtimestamp(1_000_000 + seconds, UTC)) == text
