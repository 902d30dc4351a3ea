"""VFs taken and given back on a host of plain files: what is done, in which order, and what is left when it fails or dies."""

from __future__ import annotations

import errno
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest
from msgspec.structs import replace

from tests.support.messages import ID, endpoint_id
from tests.support.sriov_host import PFS, FakeHost, FakeNic, Killed, no_guards, vf_address
from vifd.kernel import names, ops
from vifd.kernel.authority import FunctionGrant
from vifd.kernel.macvtap import Failure
from vifd.kernel.ops import BindFunction, ChangeFunction, ClaimFunction, FunctionMade
from vifd.kernel.sriov.functions import Functions
from vifd.kernel.sriov.hardware import Patience
from vifd.kernel.sriov.settings import NO_MAC, LinkState, Setting, VfSettings
from vifd.model import Kind, Limits, PciHostDriver, Port, RateLimit, Vlan

GRANT = FunctionGrant(("eth0", "eth1"))
VF, OTHER = vf_address("eth0", 0), vf_address("eth0", 1)
MAC = "52:54:00:12:34:56"
LIMITS = Limits(from_vm=RateLimit(rate_bps=100_000_000))
PORT = Port(MAC, vlan=Vlan(7, qos=3), limits=LIMITS, link_up=False, trusted=True)
TOLD = VfSettings(MAC, 7, 3, trusted=True, max_rate_mbps=100, link_state=LinkState.DOWN)
CLAIM = ClaimFunction(ID, "net", VF, PORT)
BIND = BindFunction(ID, "net", VF, PciHostDriver.VFIO, 1000, None)
TO_KERNEL = replace(BIND, host_driver=PciHostDriver.KERNEL)
CHANGE = ChangeFunction(ID, "net", VF, PORT, replace(PORT, vlan=Vlan(8), link_up=True))


def functions(host: FakeHost) -> Functions:
    """What a helper has that just began."""
    return Functions(host.open(), FakeNic(host), no_guards())


def make(host: FakeHost, claim: ClaimFunction = CLAIM, bind: BindFunction = BIND) -> FunctionMade | Failure:
    """Carry a plan out as far as it goes."""
    own = functions(host)
    claimed = own.claim(claim, GRANT)
    return claimed if isinstance(claimed, Failure) else own.bind(bind, claim.port)


def made(host: FakeHost, claim: ClaimFunction = CLAIM, bind: BindFunction = BIND) -> FunctionMade:
    result = make(host, claim, bind)
    assert isinstance(result, FunctionMade), result
    return result


def refused(result: object, cause: str = ops.NOT_READY) -> str:
    assert isinstance(result, Failure), result
    assert result.cause == cause, result
    return result.message


def settings(host: FakeHost) -> VfSettings:
    return host.settings["eth0", 0]


# --- taking


def test_a_vf_is_set_up_and_bound_and_given_to_its_owner(host: FakeHost) -> None:
    found = made(host)
    assert found == FunctionMade("eth0", 0, iommu_group=10, vfio_path="/dev/vfio/10", address=VF)
    assert (host.driver(VF), host.node_owners[10], settings(host)) == ("vfio-pci", (1000, 0o600), TOLD)
    assert host.settings["eth0", 1] == VfSettings()


def test_it_is_marked_before_it_is_touched_and_given_away_last(host: FakeHost) -> None:
    made(host)
    isolation = ["set VLAN", "set MAC", "set trust", "set rate", "set link state"]
    assert host.steps == ["mark", "unbind", *isolation, "driver_override vfio-pci", "drivers_probe", "give"]


def test_a_netdev_gets_its_endpoints_name_mac_mtu_and_mark(host: FakeHost) -> None:
    port = Port(MAC, mtu_bytes=1400)
    found = made(host, replace(CLAIM, port=port), TO_KERNEL)
    name = names.device_name(Kind.PCI, ID)
    netdev = host.netdevs[name]
    assert (found.ifname, found.vfio_path, host.driver(VF)) == (name, "", "igbvf")
    assert netdev[2:] == (1400, MAC, True, 0, names.mark(ID))
    assert (host.sysfs.device(VF) / "driver_override").read_text() == "(null)\n"


def test_a_netdev_without_link_stays_down(host: FakeHost) -> None:
    assert not host.netdevs[made(host, CLAIM, TO_KERNEL).ifname].up


def test_a_vf_without_any_driver_is_taken_too(host: FakeHost) -> None:
    host.unbind(VF)
    assert made(host).vfio_path
    assert functions(host).release(ID, VF) is None
    assert host.driver(VF) == ""


def test_a_vf_that_waits_at_vfio_is_taken_and_goes_back_there(host: FakeHost) -> None:
    host.unbind(VF)
    (host.sysfs.device(VF) / "driver_override").write_text("vfio-pci\n")
    host.bind(VF, "vfio-pci")
    before = host.snapshot()
    made(host)
    assert functions(host).release(ID, VF) is None
    assert host.snapshot() == before


def test_the_mtu_in_effect_is_the_pfs_unless_the_port_has_one(host: FakeHost) -> None:
    assert functions(host).claim(CLAIM, GRANT) == 1500
    assert functions(host).claim(replace(CLAIM, address=OTHER, port=Port(MAC, mtu_bytes=1400)), GRANT) == 1400


# --- not taking


def in_use(host: FakeHost, how: str) -> None:
    """Let somebody else have the VF."""
    netdev = host.netdevs["eth0v0"]
    match how:
        case "up":
            host.netdevs["eth0v0"] = netdev._replace(up=True)
        case "enslaved":
            host.netdevs["eth0v0"] = netdev._replace(master=7)
        case "stood on":
            (host.sysfs.root / "class/net/eth0v0/upper_vlan7").symlink_to("../eth0")
        case "addressed":
            host.addressed.add(netdev.ifindex)
        case "elsewhere":
            host.sysfs.remove_netdev(VF)
        case "libvirt's":
            (host.path / "libvirt").mkdir()
            (host.path / "libvirt/eth0_vf0").touch()
        case "open" | "given":
            host.unbind(VF)
            host.bind(VF, "vfio-pci")
            host.open_groups |= {10} if how == "open" else set()
            host.node_owners[10] = (0 if how == "open" else 107, 0o600)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("up", "its netdev eth0v0 is up"),
        ("enslaved", "its netdev eth0v0 belongs to a bridge, a bond or another such device"),
        ("stood on", "vlan7 stands on its netdev eth0v0"),
        ("addressed", "its netdev eth0v0 has an address"),
        ("elsewhere", "it is bound to igbvf and has no netdev here: another network namespace or a program has it"),
        ("libvirt's", "libvirt has it"),
        ("open", "a program has it open"),
        ("given", "/dev/vfio/10 belongs to uid 107"),
    ],
)
def test_what_somebody_else_has_is_not_touched(host: FakeHost, how: str, words: str) -> None:
    in_use(host, how)
    before = host.snapshot()
    assert refused(make(host), ops.TAKEN).startswith(f"VF {VF} is taken: {words}")
    assert (host.steps, host.snapshot()) == ([], before)


def test_what_another_endpoint_has_is_not_touched(host: FakeHost) -> None:
    made(host)
    before, host.steps = host.snapshot(), []
    other = replace(CLAIM, endpoint_id=endpoint_id(1), port=Port("52:54:00:00:00:01"))
    assert refused(make(host, other), ops.TAKEN) == f"VF {VF} is taken: endpoint {ID} has it"
    own = functions(host)
    bind = replace(BIND, endpoint_id=endpoint_id(1), owner_uid=2000)
    assert refused(own.bind(bind, PORT), ops.GONE) == f"VF {VF} of endpoint {endpoint_id(1)} is gone"
    assert "is gone" in refused(own.change(replace(CHANGE, endpoint_id=endpoint_id(1))), ops.GONE)
    assert own.release(endpoint_id(1), VF) is None
    assert (host.steps, host.snapshot()) == ([], before)


@pytest.mark.parametrize(
    ("address", "grant", "cause"),
    [
        (VF, FunctionGrant(("eth1",)), ops.REJECTED),
        (VF, FunctionGrant(("eth0",), exclude=(VF,)), ops.REJECTED),
        (VF, FunctionGrant(("eth0",), addresses=(OTHER,)), ops.REJECTED),
        (VF, FunctionGrant((VF,)), ops.REJECTED),
        (PFS["eth0"], FunctionGrant(("eth0",)), ops.TAKEN),
        ("0000:01:1f.7", FunctionGrant(("eth0",)), ops.TAKEN),
        (f"../devices/{VF}", FunctionGrant(("eth0",)), ops.TAKEN),
    ],
)
def test_only_vfs_that_the_configuration_allows_are_taken(host: FakeHost, address: str, grant: FunctionGrant, cause: str) -> None:
    assert refused(functions(host).claim(replace(CLAIM, address=address), grant), cause)
    assert host.steps == []


def test_a_pf_that_is_down_is_told(host: FakeHost) -> None:
    host.netdevs["eth0"] = host.netdevs["eth0"]._replace(up=False)
    assert refused(make(host)) == "PF eth0 is down; set it up"
    assert host.steps == []


def test_an_mtu_above_the_pfs_is_refused(host: FakeHost) -> None:
    assert refused(make(host, replace(CLAIM, port=replace(PORT, mtu_bytes=9000)))) == "MTU 9000 is more than PF eth0's 1500"
    assert host.steps == []


def test_a_pf_in_another_namespace_is_told(host: FakeHost) -> None:
    (host.sysfs.root / "class/net/eth0/ifindex").write_text("99\n")
    assert "has no netdev in vifd's network namespace" in refused(make(host))
    assert host.steps == []


def unfit(host: FakeHost, how: str) -> BindFunction:
    match how:
        case "no IOMMU":
            (host.sysfs.device(VF) / "iommu_group").unlink()
        case "no module":
            host.sysfs.remove_driver("vfio-pci")
        case "shared":
            (host.sysfs.root / "kernel/iommu_groups/10/devices" / OTHER).symlink_to(host.sysfs.device(OTHER))
        case "group":
            return replace(BIND, owner_gid=1000)
    return BIND


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("no IOMMU", "this host has no IOMMU"),
        ("no module", 'this kernel has no vfio-pci now; load it ("modprobe vfio-pci")'),
        ("shared", f"VF {VF} shares IOMMU group 10 with {OTHER}"),
        ("group", "owner.gid"),
    ],
)
def test_why_a_vf_cant_be_handed_to_a_vm(host: FakeHost, how: str, words: str) -> None:
    bind = unfit(host, how)
    before = host.snapshot()
    assert refused(make(host, CLAIM, bind)).startswith(words)
    assert functions(host).release(ID, VF) is None
    assert host.snapshot() == before


@pytest.mark.parametrize(
    ("loaded", "words"),
    [(False, "no driver takes it: load its driver"), (True, "igbvf has it and makes no netdev in vifd's network namespace")],
)
def test_why_a_vf_has_no_netdev(host: FakeHost, monkeypatch: pytest.MonkeyPatch, *, loaded: bool, words: str) -> None:
    host.unbind(VF)
    before = host.snapshot()
    if loaded:
        monkeypatch.setattr(host, "add_netdev", lambda *_, **__: None)
    else:
        monkeypatch.setattr(host, "bind", lambda *_: None)
    assert words in refused(make(host, replace(CLAIM, port=Port(MAC)), TO_KERNEL))
    release(host)
    assert host.snapshot() == before


def test_a_vf_that_no_driver_of_vms_takes_is_told(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "bind", lambda *_: None)
    assert "can't be bound to vfio-pci: it doesn't take it; the kernel's log has more" in refused(make(host))


def test_who_waits_for_udev_goes_on_without_it(host: FakeHost) -> None:
    (host.path / "udev").mkdir()
    (host.path / "udev/control").touch()
    made(host)
    made(host, replace(CLAIM, address=OTHER, port=Port(MAC)), replace(TO_KERNEL, address=OTHER))


def test_a_bridge_may_share_the_iommu_group(host: FakeHost) -> None:
    device = host.sysfs.add_function("0000:00:1c.0", iommu_group=10)
    (device / "class").write_text("0x060400\n")
    assert made(host).vfio_path


def test_a_vf_that_vfio_may_not_open_is_told(host: FakeHost) -> None:
    host.unbind(VF)
    host.bind(VF, "vfio-pci")
    host.failing["open"] = PermissionError(errno.EPERM, "no")
    assert "DeviceAllow=char-vfio*" in refused(make(host))


# --- settings that aren't kept to


@pytest.mark.parametrize("setting", [s for s in Setting if s is not Setting.SPOOF_CHECK])
def test_a_setting_that_is_refused_fails_the_request(host: FakeHost, setting: Setting) -> None:
    host.refused[setting] = errno.EOPNOTSUPP
    assert f"PF eth0 refuses the {setting} {TOLD.in_words(setting)} of a VF: no (its driver can't)" == refused(make(host))


@pytest.mark.parametrize("setting", [s for s in Setting if s is not Setting.SPOOF_CHECK])
def test_a_setting_that_is_silently_ignored_fails_the_request(host: FakeHost, setting: Setting) -> None:
    host.ignored.add(setting)
    assert refused(make(host)).startswith(f"PF eth0 takes the {setting} of a VF and doesn't keep it")


def test_the_spoof_check_is_always_on(host: FakeHost) -> None:
    host.settings["eth0", 0] = VfSettings(spoof_check=False)
    made(host)
    assert settings(host).spoof_check


def test_a_rate_waits_for_the_link(host: FakeHost) -> None:
    (host.sysfs.root / "class/net/eth0/carrier").write_text("0\n")
    assert "PF eth0 has no link" in refused(make(host))
    assert made(host, replace(CLAIM, address=OTHER, port=Port(MAC)), replace(BIND, address=OTHER))  # it isn't asked for here


def test_a_driver_that_forgets_as_it_begins_fails_the_request(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    bind = host.bind

    def bind_and_forget(address: str, driver: str) -> None:
        bind(address, driver)
        host.settings["eth0", 0] = replace(host.settings["eth0", 0], vid=0)

    monkeypatch.setattr(host, "bind", bind_and_forget)
    assert "takes the VLAN of a VF and doesn't keep it" in refused(make(host))


# --- at once


def test_a_vf_that_takes_its_time_keeps_no_vf_of_another_pf_waiting(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    hardware, unbind, held, let_go = host.open(), host.unbind, Event(), Event()
    in_time = list[bool]()

    def slow_unbind(address: str) -> None:
        if address == VF:
            held.set()
            in_time.append(let_go.wait(30))
        unbind(address)

    def take(claim: ClaimFunction) -> int | Failure:
        return Functions(hardware, FakeNic(host), no_guards()).claim(claim, GRANT)

    monkeypatch.setattr(host, "unbind", slow_unbind)
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(take, CLAIM)
        assert held.wait(30)
        other = replace(CLAIM, endpoint_id=endpoint_id(1), address=vf_address("eth1", 0), port=Port("52:54:00:00:00:01"))
        assert take(other) == 1500
        let_go.set()
        assert (slow.result(30), in_time) == (1500, [True])


# --- giving back


@pytest.mark.parametrize("bind", [BIND, TO_KERNEL])
def test_a_vf_is_given_back_as_it_was(host: FakeHost, bind: BindFunction) -> None:
    before = host.snapshot()
    made(host, CLAIM, bind)
    assert functions(host).release(ID, VF) is None
    assert host.snapshot() == before


def test_it_is_reset_before_anybody_else_gets_it_and_unmarked_last(host: FakeHost) -> None:
    made(host)
    host.steps = []
    functions(host).release(ID, VF)
    reset = [f"set {one}" for one in Setting if one is not Setting.SPOOF_CHECK]
    assert host.steps[:4] == ["take back", "unbind", "driver_override", "reset"]
    assert sorted(host.steps[4:9]) == sorted(reset)
    assert host.steps[9:] == ["driver_override igbvf", "drivers_probe", "driver_override", "unmark"]


def test_a_second_release_changes_nothing(host: FakeHost) -> None:
    made(host)
    functions(host).release(ID, VF)
    before, host.steps = host.snapshot(), []
    assert functions(host).release(ID, VF) is None
    assert (host.steps, host.snapshot()) == ([], before)


def test_a_late_release_doesnt_touch_the_next_owners_vf(host: FakeHost) -> None:
    made(host)
    functions(host).release(ID, VF)
    other = endpoint_id(1)
    made(host, replace(CLAIM, endpoint_id=other), replace(BIND, endpoint_id=other))
    before, host.steps = host.snapshot(), []
    assert functions(host).release(ID, VF) is None
    assert (host.steps, host.snapshot()) == ([], before)


def test_a_vf_changes_hands_many_times_and_nothing_is_left(host: FakeHost) -> None:
    before = host.snapshot()
    for number in range(1, 51):
        port = Port(f"52:54:00:00:00:{number:02x}", vlan=Vlan(number) if number % 2 else None, trusted=number % 3 == 0)
        who = endpoint_id(number)
        made(host, ClaimFunction(who, "net", VF, port), replace(BIND, endpoint_id=who, owner_uid=number))
        expected = VfSettings(port.mac, vid=number if number % 2 else 0, trusted=number % 3 == 0)
        assert (settings(host), host.node_owners[10][0]) == (expected, number)
        assert functions(host).release(who, VF) is None
        assert host.snapshot() == before


def test_a_vf_that_cant_be_reset_is_kept_out_of_use(host: FakeHost) -> None:
    before = host.snapshot()
    made(host)
    host.failing["reset"] = OSError(errno.ENOTTY, "no")
    words = refused(functions(host).release(ID, VF), ops.KERNEL)
    assert words.startswith(f"VF {VF} can't be made as new: it can't be reset: ")
    assert words.endswith("It is kept out of use (quarantined), and vifd tries again")
    assert f"endpoint {ID} has it" in refused(make(host, replace(CLAIM, endpoint_id=endpoint_id(1))), ops.TAKEN)
    host.failing.clear()
    assert functions(host).release(ID, VF) is None
    assert host.snapshot() == before


def test_a_rate_that_is_left_without_a_link_goes_once_there_is_one_and_nobody_waits_for_it(host: FakeHost) -> None:
    before = host.snapshot()
    made(host)
    carrier = host.sysfs.root / "class/net/eth0/carrier"
    carrier.write_text("0\n")
    patient = Functions(host.open()._replace(patience=Patience(carrier=3600)), FakeNic(host), no_guards())
    words = refused(patient.release(ID, VF), ops.NOT_READY)
    assert words == (
        f"VF {VF} can't be made as new: PF eth0 has no link, without which it takes no rate for a VF and forgets none; "
        "see to its cable. It is kept out of use (quarantined), and vifd tries again"
    )
    assert (host.driver(VF), settings(host)) == ("", VfSettings(max_rate_mbps=100, link_state=LinkState.DOWN))
    assert f"endpoint {ID} has it" in refused(make(host, replace(CLAIM, endpoint_id=endpoint_id(1))), ops.TAKEN)
    carrier.write_text("1\n")
    assert patient.release(ID, VF) is None
    assert host.snapshot() == before


def test_a_vf_without_a_rate_is_given_back_without_a_link(host: FakeHost) -> None:
    before = host.snapshot()
    made(host, replace(CLAIM, port=replace(PORT, limits=None)))
    (host.sysfs.root / "class/net/eth0/carrier").write_text("0\n")
    assert functions(host).release(ID, VF) is None
    assert host.snapshot() == before


def test_a_vf_that_a_program_has_open_is_kept_and_nobody_opens_it_anew(host: FakeHost) -> None:
    made(host)
    host.open_groups.add(10)
    assert "a program has it open; end the VM" in refused(functions(host).release(ID, VF), ops.NOT_READY)
    assert (host.driver(VF), host.node_owners[10]) == ("vfio-pci", (0, 0o600))
    host.open_groups.clear()
    assert functions(host).release(ID, VF) is None


def test_a_vf_that_was_taken_away_is_forgotten(host: FakeHost) -> None:
    made(host)
    host.sysfs.remove(VF)
    assert functions(host).release(ID, VF) is None
    assert functions(host).release(ID, VF) is None
    assert host.open().marks.marked() == []


def test_a_vf_that_is_there_anew_is_taken_again(host: FakeHost) -> None:
    before = host.snapshot()
    made(host)
    host.unbind(VF)
    host.settings["eth0", 0] = VfSettings()
    host.bind(VF, "igbvf")
    assert made(host).vfio_path
    assert settings(host) == TOLD
    functions(host).release(ID, VF)
    assert host.snapshot() == before


def test_a_driver_that_was_unloaded_gets_nothing_back(host: FakeHost) -> None:
    made(host)
    host.unbind(OTHER)
    host.unbind(vf_address("eth1", 0))
    host.unbind(vf_address("eth1", 1))
    host.sysfs.remove_driver("igbvf")
    assert functions(host).release(ID, VF) is None
    assert (host.driver(VF), host.open().marks.marked()) == ("", [])


def test_a_mac_that_cant_be_zeroed_is_somebody_elses_no_more(host: FakeHost) -> None:
    host.failing["no zeroes"] = OSError()
    made(host)
    assert functions(host).release(ID, VF) is None
    assert settings(host).mac not in (MAC, NO_MAC)
    host.settings["eth0", 0] = VfSettings("02:00:00:00:00:99")
    made(host)
    assert functions(host).release(ID, VF) is None
    assert settings(host).mac == "02:00:00:00:00:99"


def test_where_there_is_nothing_to_work_with_nothing_is_an_endpoints() -> None:
    own = Functions("the first SR-IOV network takes a restart", FakeNic(None), no_guards())
    assert refused(own.claim(CLAIM, GRANT)) == "the first SR-IOV network takes a restart"
    assert own.release(ID, VF) is None


# --- changing


def test_a_living_vf_is_changed(host: FakeHost) -> None:
    made(host)
    host.steps = []
    assert functions(host).change(CHANGE) == 1500
    assert settings(host) == VfSettings(MAC, 8, trusted=True, max_rate_mbps=100)
    assert host.steps == ["set VLAN", "set link state"]


def test_a_change_that_fails_goes_back(host: FakeHost) -> None:
    made(host)
    host.refused[Setting.LINK_STATE] = errno.EOPNOTSUPP
    assert "refuses the link state" in refused(functions(host).change(CHANGE))
    assert settings(host) == TOLD


def test_what_somebody_changed_is_mended(host: FakeHost) -> None:
    made(host)
    host.settings["eth0", 0] = VfSettings()
    host.node_owners[10] = (7, 0o666)
    own = functions(host)
    assert isinstance(own.bind(BIND, None), FunctionMade)
    assert own.change(ChangeFunction(ID, "net", VF, None, PORT)) == 1500
    assert (settings(host), host.node_owners[10]) == (TOLD, (1000, 0o600))


def test_the_netdev_of_a_living_vf_is_changed_too(host: FakeHost) -> None:
    ifname = made(host, replace(CLAIM, port=Port(MAC)), TO_KERNEL).ifname
    after = Port(MAC, mtu_bytes=1300, link_up=False)
    assert functions(host).change(replace(CHANGE, before=Port(MAC), port=after)) == 1300
    assert host.netdevs[ifname][2:5] == (1300, MAC, False)


# --- dying


def steps_of(action: Callable[[FakeHost], object], host: FakeHost) -> int:
    host.steps = []
    action(host)
    return len(host.steps)


def release(host: FakeHost) -> None:
    assert functions(host).release(ID, VF) is None


@pytest.mark.parametrize("bind", [BIND, TO_KERNEL])
@pytest.mark.parametrize("ending", [False, True])
def test_who_dies_at_any_step_leaves_what_a_release_puts_back(host: FakeHost, bind: BindFunction, *, ending: bool) -> None:
    before = host.snapshot()
    begin = (lambda one: made(one, CLAIM, bind)) if not ending else release
    made(host, CLAIM, bind)
    total = steps_of(release, host)
    if not ending:
        total = steps_of(begin, host)
        release(host)
    for step in range(1, total + 1):
        if ending:
            made(host, CLAIM, bind)
        host.steps, host.die_at = [], step
        with pytest.raises(Killed):
            begin(host)
        host.die_at = 0
        release(host)
        assert host.snapshot() == before, f"after {host.steps[:step]}"


@pytest.mark.parametrize("bind", [BIND, TO_KERNEL])
def test_what_fails_at_any_step_is_undone_by_a_release(host: FakeHost, bind: BindFunction) -> None:
    before = host.snapshot()
    made(host, CLAIM, bind)
    names_of_steps = [step for step in dict.fromkeys(host.steps) if not step.startswith(("set", "name", "configure"))]
    release(host)
    for step in names_of_steps:
        host.failing = {step: OSError(errno.EIO, "no")}
        assert isinstance(make(host, CLAIM, bind), Failure), step
        host.failing = {}
        release(host)
        assert host.snapshot() == before, step
