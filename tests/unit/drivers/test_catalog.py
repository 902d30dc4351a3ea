"""Network drivers of other packages: real ones, installed for a test by a directory on the path."""

import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.nics import two_nics
from vifd import config
from vifd.drivers import catalog
from vifd.drivers.bridge import BridgeDriver
from vifd.drivers.direct import DirectDriver
from vifd.drivers.fake import FakeDriver
from vifd.drivers.sriov import SriovDriver
from vifd.drivers.vdpa import VdpaDriver
from vifd.errors import ConfigError, StartError
from vifd.kernel.authority import BridgeGrant, FunctionGrant
from vifd.kernel.sriov.inventory import Inventory

DRIVER = """
    from msgspec import Struct
    from vifd.drivers.base import NetworkDriver, Planned
    from vifd.errors import Violation
    from vifd.model import BridgePort

    class GreenOptions(Struct, frozen=True):
        shade: str = "dark"

    class GreenDriver(NetworkDriver[GreenOptions]):
        name = "green"
        options = GreenOptions

        @classmethod
        def check_options(cls, options):
            return [Violation("shade", "is ugly")] if options.shade == "pea" else []

        def offers(self, spec):
            return []

        def plan(self, endpoint_id, spec, preference):
            return Planned((), spec.port)

        def locate(self, endpoint_id, preference, made):
            return BridgePort("br-green", "green0")
"""

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Install a package with one module and one network driver."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path)

    def one(name: str, value: str, module: str, code: str = DRIVER) -> None:
        (tmp_path / f"{module}.py").write_text(textwrap.dedent(code))
        metadata = tmp_path / f"{module}-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text(f"[{catalog.GROUP}]\n{name} = {value}\n")

    yield one
    for module in set(sys.modules) - before:
        del sys.modules[module]


def parse(text: str) -> config.Config:
    drivers = catalog.load()
    types = {name: driver.options for name, driver in drivers.items()}
    return config.parse(text, types, lambda name, options: catalog.check_options(drivers, name, options))


def test_the_built_in_drivers_are_there() -> None:
    assert catalog.load() == {
        "bridge": BridgeDriver,
        "direct": DirectDriver,
        "sriov": SriovDriver,
        "vdpa": VdpaDriver,
        "fake": FakeDriver,
    }


def test_a_driver_of_another_package_joins(install: Install) -> None:
    install("green", "green_net:GreenDriver", "green_net")
    assert sorted(catalog.load()) == ["bridge", "direct", "fake", "green", "sriov", "vdpa"]


def test_a_driver_of_another_package_reads_its_own_keys(install: Install) -> None:
    install("green", "green_net:GreenDriver", "green_net")
    network = parse('[networks.a]\ndriver = "green"\nshade = "light"').networks["a"]
    assert network.options.shade == "light"
    assert catalog.create(catalog.load(), network).network == "a"


def test_a_driver_of_another_package_checks_its_own_keys(install: Install) -> None:
    install("green", "green_net:GreenDriver", "green_net")
    with pytest.raises(StartError, match=r"networks\.a\.shade: is ugly"):
        parse('[networks.a]\ndriver = "green"\nshade = "pea"')


def test_two_drivers_of_one_name_stop_the_start(install: Install) -> None:
    install("bridge", "green_net:GreenDriver", "green_net")
    with pytest.raises(StartError, match="two packages have a network driver 'bridge'"):
        catalog.load()


def test_two_other_packages_with_one_name_stop_the_start(install: Install) -> None:
    install("green", "green_net:GreenDriver", "green_net")
    install("green", "greener_net:GreenDriver", "greener_net")
    with pytest.raises(StartError, match="two packages have a network driver 'green'"):
        catalog.load()


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ("green_net:GreenDriver", "raise RuntimeError('its library is missing')"),
        ("green_net:GreenDriver", "import no_such_module"),
        ("green_net:NoSuchClass", DRIVER),
        ("green_net:GreenDriver", "def ("),
    ],
)
def test_a_driver_that_cant_be_loaded_stops_the_start(install: Install, value: str, code: str) -> None:
    install("green", value, "green_net", code)
    with pytest.raises(StartError, match=r"network driver 'green' \(green_net:\w+\) can't be loaded"):
        catalog.load()


@pytest.mark.parametrize("value", ["green_net:GreenOptions", "green_net:Violation", "green_net"])
def test_what_is_no_driver_stops_the_start(install: Install, value: str) -> None:
    install("green", value, "green_net")
    with pytest.raises(StartError, match="is no NetworkDriver"):
        catalog.load()


def test_the_helper_may_touch_what_the_configured_networks_need() -> None:
    parsed = parse('[networks.a]\ndriver = "bridge"\nbridge = "br-a"\n[networks.b]\ndriver = "fake"')
    assert catalog.authority(catalog.load(), parsed) == {"a": BridgeGrant("br-a")}


TWO_ON_ONE = '[networks.a]\ndriver = "bridge"\nbridge = "br-a"\n[networks.b]\ndriver = "bridge"\nbridge = "br-a"\n'


def test_two_networks_may_share_a_bridge_of_which_they_say_the_same() -> None:
    catalog.check_together(catalog.load(), parse(TWO_ON_ONE))


@pytest.mark.parametrize(
    "more", ["mtu = 9000", 'uplink = "eth7"', 'uplink = "eth7"\nvlan = 7', 'addresses = ["10.0.0.1/24"]', 'dns = ["9.9.9.9"]']
)
def test_two_networks_that_say_different_things_of_one_bridge_are_refused(more: str) -> None:
    with pytest.raises(ConfigError) as caught:
        catalog.check_together(catalog.load(), parse(TWO_ON_ONE + more))
    (problem,) = caught.value.problems
    assert problem.field == "networks.b.bridge"
    assert "network a has bridge br-a too" in problem.message


def test_two_networks_with_different_pools_on_one_bridge_are_refused() -> None:
    same = 'addresses = ["10.0.0.1/24"]\n'
    text = TWO_ON_ONE.replace("[networks.b]", f"{same}[networks.b]") + f'{same}pool = ["10.0.0.0/24"]'
    with pytest.raises(ConfigError, match="pool"):
        catalog.check_together(catalog.load(), parse(text))


def test_an_uplink_cant_be_a_bridges_and_a_direct_networks() -> None:
    text = '[networks.a]\ndriver = "direct"\nuplink = "eth7"\n[networks.b]\ndriver = "bridge"\nbridge = "br-b"\nuplink = "eth7"\n'
    with pytest.raises(ConfigError) as caught:
        catalog.check_together(catalog.load(), parse(text))
    (problem,) = caught.value.problems
    assert problem.field == "networks.a.uplink"
    assert "eth7 is put on the bridge of network b" in problem.message


UP = 'uplink = "eth7"\n'


def test_an_uplink_and_each_vlan_of_it_go_on_one_bridge() -> None:
    assert problems_of(a=UP, b=f"{UP}vlan = 7", c=f"{UP}vlan = 8") == set()
    assert {field for field, _ in problems_of(a=UP, b=UP)} == {"networks.b.uplink"}
    ((field, message),) = problems_of(a=f"{UP}vlan = 7", b=f"{UP}vlan = 7")
    assert (field, "VLAN 7 of eth7 is put on the bridge of network a" in message) == ("networks.b.vlan", True)


def test_an_uplink_that_only_lends_a_vlan_may_be_a_direct_networks_and_a_way_out() -> None:
    direct = '[networks.z]\ndriver = "direct"\nuplink = "eth7"\n'
    assert problems_of(a=f"{UP}vlan = 7\n{direct}") == set()
    nat = 'addresses = ["10.0.0.1/24"]\nnat = true\nnat_uplink = "eth7"'
    assert problems_of(a=f"{UP}vlan = 7", b=nat) == set()


def test_two_direct_networks_may_share_an_uplink() -> None:
    text = "".join(f'[networks.{name}]\ndriver = "direct"\nuplink = "eth7"\n' for name in "ab")
    catalog.check_together(catalog.load(), parse(text))


def problems_of(**networks: str) -> set[tuple[str, str]]:
    text = "\n".join(f'[networks.{name}]\ndriver = "bridge"\nbridge = "br-{name}"\n{keys}' for name, keys in networks.items())
    try:
        catalog.check_together(catalog.load(), parse(text))
    except ConfigError as error:
        return {(problem.field, problem.message) for problem in error.problems}
    return set()


def test_two_bridges_with_the_same_subnet_and_nat_are_refused() -> None:
    keys, wider = 'addresses = ["10.0.0.1/24"]\nnat = true', 'addresses = ["10.0.9.1/16"]'
    assert problems_of(a=keys) == set()
    for networks in ({"a": keys, "b": keys}, {"b": keys, "a": wider}):
        ((field, message),) = problems_of(**networks)
        assert (field, "the host can't route both" in message) == ("networks.b.addresses", True)


def test_a_way_out_that_is_a_port_of_a_bridge_is_refused() -> None:
    keys = 'addresses = ["10.0.0.1/24"]\nnat = true\nnat_uplink = "eth0"'
    assert problems_of(a=keys, b='uplink = "eth0"') == {("networks.a.nat_uplink", "eth0 is put on bridge br-b; name the bridge")}


def problems_of_pfs(**networks: str) -> list[tuple[str, str]]:
    text = "\n".join(f'[networks.{name}]\ndriver = "sriov"\npfs = ["eth7"]\n{keys}' for name, keys in networks.items())
    try:
        catalog.check_together(catalog.load(), parse(text))
    except ConfigError as error:
        return list(error.problems)
    return []


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ('vfs = ["0000:07:10.0"]', 'vfs = ["0000:07:10.2-0000:07:10.6"]'),
        ('vfs = ["0000:07:10.0-0000:07:10.6"]\nexclude = ["0000:07:10.6"]', 'vfs = ["0000:07:10.6"]'),
        ('vfs = 7\nexclude = ["0000:07:10.0-0000:07:10.6"]', 'vfs = ["0000:07:10.2"]'),
        ('vfs = ["0000:07:10.2"]', 'vfs = 7\nexclude = ["0000:07:10.2"]'),
    ],
)
def test_two_networks_may_share_a_pf_whose_vfs_they_divide(one: str, other: str) -> None:
    assert problems_of_pfs(a=one, b=other) == []


@pytest.mark.parametrize(
    ("one", "other", "field", "why"),
    [
        ("", "", "vfs", "network a may use the same VFs of eth7"),
        ("vfs = 7", "vfs = 7", "vfs", "network a may use the same VFs of eth7"),
        ("vfs = 7", "vfs = 6", "vfs", "network a wants 7 VFs on eth7"),
        ('vfs = ["0000:07:10.0"]', "", "vfs", "the same VFs"),
        ('vfs = ["0000:07:10.0-0000:07:10.4"]', 'vfs = ["0000:07:10.4"]', "vfs", "the same VFs"),
        ('vfs = 7\nexclude = ["0000:07:10.0"]', 'vfs = ["0000:07:10.0", "0000:07:10.2"]', "vfs", "the same VFs"),
        (
            'vfs = ["0000:07:10.0"]\nphysical_network = "core"',
            'vfs = ["0000:07:10.2"]',
            "physical_network",
            "eth7 is on core for network a",
        ),
    ],
)
def test_two_networks_that_say_different_things_of_a_pf_or_want_one_vf_are_refused(
    one: str, other: str, field: str, why: str
) -> None:
    ((where, message),) = problems_of_pfs(a=one, b=other)
    assert where == f"networks.b.{field}"
    assert why in message


@pytest.mark.parametrize(
    ("other", "found"),
    [
        ('pfs = ["0000:01:00.0"]', [("networks.b.vfs", "network a may use the same VFs of 0000:01:00.0; list in each those")]),
        (
            'pfs = ["ens2f0", "ens1f0"]\nphysical_network = "core"',
            [
                ("networks.b.physical_network", "ens1f0 (0000:01:00.0) is on none for network a; let both say the same"),
                ("networks.b.vfs", "network a may use the same VFs of ens1f0 (0000:01:00.0); list in each those"),
            ],
        ),
        ('pfs = ["ens2f0", "eth7"]', []),
    ],
)
def test_a_pf_that_two_networks_name_differently_is_found_once_it_is_there(
    tmp_path: Path, other: str, found: list[tuple[str, str]]
) -> None:
    a = "0000:01:00.0" if "ens1f0" in other else "ens1f0"
    both = parse(f'[networks.a]\ndriver = "sriov"\npfs = ["{a}"]\n[networks.b]\ndriver = "sriov"\n{other}')
    catalog.check_together(catalog.load(), both)
    violations = catalog.find_contradictions(catalog.load(), both, Inventory(two_nics(tmp_path / "sys").root))
    assert [(where, message.partition(" that are")[0]) for where, message in violations] == found


def test_networks_with_pfs_of_their_own_have_nothing_to_divide() -> None:
    text = "".join(f'[networks.{name}]\ndriver = "sriov"\npfs = ["eth{name}"]\n' for name in "ab")
    catalog.check_together(catalog.load(), parse(text))


def test_a_bridge_for_representors_is_what_the_network_says_that_it_is_of() -> None:
    fast = '[networks.{}]\ndriver = "sriov"\npfs = ["{}"]\nbridge = "{}"\n'
    text = fast.format("fast", "eth7", "br-blue") + fast.format("alone", "eth8", "br-alone")
    text += '[networks.blue]\ndriver = "bridge"\nbridge = "br-blue"\nuplink = "eth7"\nmtu = 9000\n'
    config = parse(text)
    catalog.check_together(catalog.load(), config)
    grants = catalog.authority(catalog.load(), config)
    fast_grant, alone = grants["fast"], grants["alone"]
    assert isinstance(fast_grant, FunctionGrant)
    assert isinstance(alone, FunctionGrant)
    assert (fast_grant.bridge, alone.bridge) == (grants["blue"], BridgeGrant("br-alone"))


@pytest.mark.parametrize(("other", "problems"), [("core", 0), ("edge", 1), ("", 1)])
def test_a_vdpa_management_device_is_on_one_physical_network(other: str, problems: int) -> None:
    networks = {"a": "core", "b": other}
    text = "".join(
        f'[networks.{name}]\ndriver = "vdpa"\nmanagement_devices = ["pci/0000:03:00.2"]\nphysical_network = "{place}"\n'
        for name, place in networks.items()
    )
    try:
        catalog.check_together(catalog.load(), parse(text))
    except ConfigError as error:
        ((field, message),) = error.problems
        assert (problems, field) == (1, "networks.b.physical_network")
        assert "pci/0000:03:00.2 is on core for network a" in message
    else:
        assert problems == 0


def test_a_driver_that_lacks_a_method_stops_the_start(install: Install) -> None:
    lacking = "from vifd.drivers.base import NetworkDriver\nclass GreenDriver(NetworkDriver):\n    name = 'green'\n"
    install("green", "green_net:GreenDriver", "green_net", lacking)
    with pytest.raises(StartError, match="lacks locate, offers, plan"):
        catalog.load()
