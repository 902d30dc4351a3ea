import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.messages import ID
from vifd.kernel import names
from vifd.model import Kind

MACS = st.binary(min_size=6, max_size=6).map(lambda data: data.hex(":"))
UUIDS = st.uuids().map(str)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (Kind.BRIDGE, "vdbz5geomx5ho"),
        (Kind.TAP, "vdtz5geomx5ho"),
        (Kind.MACVTAP, "vdmz5geomx5ho"),
        (Kind.PCI, "vdpz5geomx5ho"),
        (Kind.OVS_PORT, "vdoz5geomx5ho"),
        (Kind.VHOST_USER, "vduz5geomx5ho"),
        (Kind.VDPA, "vdvz5geomx5ho"),
    ],
)
def test_the_name_of_a_device_never_changes_for_operators_know_it(kind: Kind, name: str) -> None:
    # printf %s 11111111-2222-4333-8444-555555555555 | sha256sum | cut -c1-64 | xxd -r -p | base32 | cut -c1-10
    assert names.device_name(kind, ID) == name


@given(UUIDS)
def test_every_device_has_a_name_that_can_name_an_interface(endpoint_id: str) -> None:
    for kind in Kind:
        name = names.device_name(kind, endpoint_id)
        assert len(name) == 13
        assert names.is_ifname(name)
        assert name.encode().startswith(names.DEVICE_PREFIX)


def test_each_kind_has_a_name_of_its_own() -> None:
    assert len({names.device_name(kind, ID) for kind in Kind}) == len(Kind)


def test_an_ifb_has_the_letters_of_its_device() -> None:
    assert names.ifb_name(ID) == "ifbz5geomx5ho"
    assert not names.ifb_name(ID).encode().startswith(names.DEVICE_PREFIX)


@given(UUIDS)
def test_the_mark_of_an_ifb_is_read_back_and_marks_no_device(endpoint_id: str) -> None:
    mark = names.ifb_mark(endpoint_id)
    assert mark == f"vifd:ifb:{endpoint_id}"
    assert names.marked_ifb_endpoint_id(mark) == endpoint_id
    assert names.marked_endpoint_id(mark) == ""


@pytest.mark.parametrize("alias", ["", "vifd:ifb:", ID, f"vifd:{ID}", f"vifd:ifb:{ID}x", f"ifb:{ID}", names.network_mark("ifb")])
def test_what_is_no_ifbs_mark_marks_no_ifb(alias: str) -> None:
    assert names.marked_ifb_endpoint_id(alias) == ""


def test_the_altname_and_the_mark_say_whose_a_device_is() -> None:
    assert names.altname(ID) == f"vifd-{ID}"
    assert names.mark(ID) == f"vifd:{ID}"


@given(UUIDS)
def test_a_mark_is_read_back(endpoint_id: str) -> None:
    assert names.marked_endpoint_id(names.mark(endpoint_id)) == endpoint_id


@pytest.mark.parametrize(
    "alias",
    [
        "",
        "vifd:",
        ID,
        f"vifd:{ID}x",
        f"vifd: {ID}",
        f"Vifd:{ID}",
        f"xvifd:{ID}",
        f"vifd:vifd:{ID}",
        f"vifd:{ID}\n",
        "vifd:00000000-0000-0000-0000-000000000000",
        names.network_mark("blue"),
    ],
)
def test_what_is_no_endpoints_mark_marks_nothing(alias: str) -> None:
    assert names.marked_endpoint_id(alias) == ""


@given(st.text())
def test_no_network_can_have_the_mark_of_an_endpoint(network: str) -> None:
    assert names.marked_endpoint_id(names.network_mark(network)) == ""


@pytest.mark.parametrize("name", ["a", "eth0", "br-blue", "eth0.100", "a" * 15, "0", "_x", "wlp2s0+"])
def test_a_good_name_of_an_interface(name: str) -> None:
    assert names.is_ifname(name)


@pytest.mark.parametrize(
    "name",
    ["", "a" * 16, "a b", "a/b", "a:b", ".", "..", "-a", ".a", "+a", "a\n", "a\0", "%d", "eth%d", "é", "a\u00a0", "\u0661"],
)
def test_a_bad_name_of_an_interface(name: str) -> None:
    assert not names.is_ifname(name)


@given(UUIDS)
def test_a_canonical_uuid_is_an_endpoints_id(endpoint_id: str) -> None:
    assert names.is_endpoint_id(endpoint_id)
    assert not names.is_endpoint_id(f"{endpoint_id}\n")
    assert names.is_endpoint_id(endpoint_id.upper()) == (endpoint_id.upper() == endpoint_id)


def test_the_nil_uuid_is_no_endpoints_id() -> None:
    assert not names.is_endpoint_id("00000000-0000-0000-0000-000000000000")


def test_a_derived_mac_never_changes_for_guests_keep_it() -> None:
    # printf %s 'vifd mac 11111111-2222-4333-8444-555555555555' | sha256sum, with the first octet made local and unicast
    assert names.derived_mac(ID) == "16:52:d8:19:10:fd"


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_a_derived_mac_is_local_and_unicast_and_leaves_the_hosts_alone(text: str) -> None:
    first = int(names.derived_mac(text)[:2], 16)
    assert first & 0b11 == 0b10
    assert first not in (0xFE, 0xFA)


@given(MACS)
def test_the_hosts_mac_differs_from_the_vms_and_is_higher_than_a_bridges(mac: str) -> None:
    host = names.host_mac(mac)
    assert host != mac
    assert host[2:] == mac[2:]
    assert host[:2] in ("fe", "fa")


@pytest.mark.parametrize(
    ("vm", "host"),
    [
        ("52:54:00:12:34:56", "fe:54:00:12:34:56"),
        ("fe:54:00:12:34:56", "fa:54:00:12:34:56"),
        ("fa:54:00:12:34:56", "fe:54:00:12:34:56"),
    ],
)
def test_the_hosts_mac_begins_with_fe_or_fa(vm: str, host: str) -> None:
    assert names.host_mac(vm) == host


@pytest.mark.parametrize("manager", ["vdpasim_net", "pci/0000:01:00.2", "auxiliary/mlx5_core.sf.4"])
@pytest.mark.parametrize("number", [0, 7, 4095])
def test_a_place_at_a_management_device_is_read_back(manager: str, number: int) -> None:
    assert names.is_management_device(manager)
    assert names.parse_place(names.place(manager, number)) == (manager, number)


@pytest.mark.parametrize(
    "text", ["", "#0", "vdpasim_net", "vdpasim_net#", "a#01", "a#-1", "a#0\n", "a b#0", "a/b/c#0", "../a#0", "0000:01:10.0"]
)
def test_what_is_no_place_is_none(text: str) -> None:
    assert names.parse_place(text) is None
