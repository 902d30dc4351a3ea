"""vDPA devices of the kernel's simulator, in the emulated machine; read back with `vdpa`, sysfs and vhost-vdpa's ioctls."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support import vdpa
from tests.support.asking import make, new_id, refusal, release_all, state_of
from tests.support.daemon import Daemon, network_namespace, running, wait_for
from tests.support.restarts import listed
from tests.support.vdpa import MANAGER, make_vdpa
from vifclient import Client, VifError
from vifclient.hypervisors import qemu
from vifclient.messages import DriftKind, EndpointPreference, Owner, PortSpec, VdpaPreference
from vifclient.retry import NO_RETRY
from vifd.kernel import names
from vifd.model import Kind

ALICE, BOB = 20001, 20002
MAC = "52:54:00:12:34:56"
NETWORKS = f"""
[networks.fast]
driver = "vdpa"
management_devices = ["{MANAGER}"]
"""
FOREIGN = "vdpa7"


@pytest.fixture(scope="module", autouse=True)
def simulator() -> Iterator[None]:
    """The simulator, with a device that isn't vifd's; elsewhere these tests are skipped."""
    if subprocess.run(["modprobe", "-a", *vdpa.MODULES], check=False, capture_output=True).returncode != 0:
        pytest.skip("this isn't the emulated machine")
    subprocess.run(["vdpa", "dev", "add", "name", FOREIGN, "mgmtdev", MANAGER, "mac", "52:54:00:00:00:07"], check=True)
    path = vdpa.DEVICES / FOREIGN
    before = (vdpa.told(FOREIGN), vdpa.bound(FOREIGN), sorted(one.name for one in path.iterdir()))
    yield
    assert (vdpa.told(FOREIGN), vdpa.bound(FOREIGN), sorted(one.name for one in path.iterdir())) == before
    subprocess.run(["vdpa", "dev", "del", FOREIGN], check=True)


@pytest.fixture(scope="module")
def host(simulator: None) -> Iterator[Daemon]:
    """A daemon of the machine's own namespace."""
    with running(netns="", networks=NETWORKS) as daemon:
        yield daemon
        assert daemon.stop() == 0  # its log has a traceback of a helper's whose front was killed


@pytest.fixture
def vifd(host: Daemon) -> Iterator[Daemon]:
    """The module's daemon, of whose endpoints nothing is left after each test."""
    yield host
    print(host.log()[-5000:])
    with Client(host.socket, retry=NO_RETRY) as client:
        release_all(client)
    assert list(vdpa.devices()) == [FOREIGN]
    assert list((host.devices / "vdpa").iterdir()) == []


@pytest.fixture
def client(vifd: Daemon) -> Iterator[Client]:
    with Client(vifd.socket, retry=NO_RETRY) as client:
        yield client


def test_a_device_is_as_it_was_asked_for(vifd: Daemon, client: Client) -> None:
    endpoint = make_vdpa(client, port=PortSpec(mac=MAC, mtu_bytes=1400), owner=Owner(uid=ALICE))
    made = endpoint.vdpa
    assert (made.name, made.queues) == (names.device_name(Kind.VDPA, endpoint.endpoint_id), 1)
    assert vdpa.devices()[made.name]["mgmtdev"] == MANAGER
    assert (vdpa.told(made.name)["mac"], vdpa.told(made.name)["mtu"]) == (MAC, 1400)
    assert (vdpa.bound(made.name), vdpa.owner(made.device_path)) == ("vhost_vdpa", (ALICE, 0o600))


def test_what_was_left_open_is_told(vifd: Daemon, client: Client) -> None:
    endpoint = make_vdpa(client)
    assert vdpa.told(endpoint.vdpa.name)["mac"] == endpoint.port.mac == names.derived_mac(endpoint.endpoint_id)
    assert (endpoint.port.mtu_bytes, endpoint.port.guard.enabled) == (1500, False)


def test_its_owner_opens_it_and_nobody_else(vifd: Daemon, client: Client) -> None:
    path = make_vdpa(client, port=PortSpec(mac=MAC), owner=Owner(uid=ALICE)).vdpa.device_path
    with pytest.raises(AssertionError, match="Permission denied"), vdpa.opened(path, BOB):
        pass
    with vdpa.opened(path, ALICE) as found:
        assert found == (1, MAC)  # VIRTIO_ID_NET


def test_qemu_takes_them_as_their_owner_from_the_start_and_while_it_runs(vifd: Daemon, client: Client) -> None:
    first, second = (make_vdpa(client, owner=Owner(uid=ALICE)) for _ in range(2))
    # All memory of a VM with such a device is locked; who runs VMs raises their users' limit.
    become = ["prlimit", "--memlock=unlimited", "setpriv", f"--reuid={ALICE}", f"--regid={ALICE}", "--clear-groups"]
    machine = ["-machine", "q35,accel=tcg", "-m", "64", "-nodefaults", "-display", "none", "-S", "-qmp", "stdio"]
    port = ["-device", "pcie-root-port,id=rp1"]
    argv = [*become, "qemu-system-x86_64", *machine, *port, *qemu.argv(first, netdev_id="n0")]
    plug = qemu.plug(second, netdev_id="n1", device_options={"bus": "rp1"})
    ((add, _),) = plug.backend
    plain = [{"execute": command} for command in ("qmp_capabilities", "query-rx-filter", "quit")]
    commands = "".join(json.dumps(one) + "\n" for one in (plain[0], add, plug.device, *plain[1:]))
    done = subprocess.run(argv, input=commands, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert '"error"' not in done.stdout
    for one in (first, second):
        assert f'"main-mac": "{one.port.mac}"' in done.stdout


def test_several_at_once_are_apart(vifd: Daemon) -> None:
    def ask(_: int) -> tuple[str, str]:
        with Client(vifd.socket, retry=NO_RETRY) as client:
            made = make_vdpa(client, owner=Owner(uid=ALICE)).vdpa
            return made.name, made.device_path

    with ThreadPoolExecutor(8) as pool:
        made = dict(pool.map(ask, range(8)))
    assert {*made, FOREIGN} == set(vdpa.devices())
    assert len(set(made.values())) == 8
    assert {vdpa.owner(path) for path in made.values()} == {(ALICE, 0o600)}


def test_a_device_that_is_open_is_kept_until_it_is_let_go(vifd: Daemon, client: Client) -> None:
    endpoint = make_vdpa(client, owner=Owner(uid=ALICE))
    name, path = endpoint.vdpa.name, endpoint.vdpa.device_path
    with vdpa.opened(path, ALICE):
        with refusal("INTERNAL", "KERNEL") as refused:
            client.release_endpoint(endpoint.endpoint_id)
        assert f"a program has vDPA device {name} open still" in refused.value.message
        assert (state_of(client, endpoint.endpoint_id), vdpa.owner(path)) == ("RELEASING", (0, 0o600))
        make_vdpa(client)  # the others go on
    client.release_endpoint(endpoint.endpoint_id)
    assert name not in vdpa.devices()


def test_what_vifd_does_not_have_is_refused(vifd: Daemon, client: Client) -> None:
    with refusal("UNIMPLEMENTED", "UNSUPPORTED"):
        make_vdpa(client, port=PortSpec(isolated=True))
    with refusal("UNIMPLEMENTED", "UNSUPPORTED"):
        make(client, network="fast", acceptable=[EndpointPreference(vdpa=VdpaPreference(queues=2))])
    assert list(vdpa.devices()) == [FOREIGN]


def test_a_device_of_vifds_name_that_it_did_not_make_is_left_alone(vifd: Daemon, client: Client) -> None:
    endpoint_id = new_id()
    name = names.device_name(Kind.VDPA, endpoint_id)
    subprocess.run(["vdpa", "dev", "add", "name", name, "mgmtdev", MANAGER, "mac", MAC], check=True)
    with refusal("INTERNAL", "KERNEL"):
        make_vdpa(client, endpoint_id)
    client.release_endpoint(endpoint_id)
    assert vdpa.told(name)["mac"] == MAC
    subprocess.run(["vdpa", "dev", "del", name], check=True)


def test_what_others_change_is_mended(vifd: Daemon, client: Client) -> None:
    endpoint = make_vdpa(client, port=PortSpec(mac=MAC), owner=Owner(uid=ALICE))
    os.chown(endpoint.vdpa.device_path, BOB, -1)
    drifts = client.check_endpoint(endpoint.endpoint_id, repair=True).drifts
    assert [drift.kind for drift in drifts] == [DriftKind.DRIFT_KIND_OWNER]
    assert vdpa.owner(endpoint.vdpa.device_path) == (ALICE, 0o600)
    subprocess.run(["vdpa", "dev", "del", endpoint.vdpa.name], check=True)
    checked = client.check_endpoint(endpoint.endpoint_id, repair=True)
    assert [drift.kind for drift in checked.drifts] == [DriftKind.DRIFT_KIND_DEVICE_MISSING]
    (now,) = client.list_endpoints()
    assert (vdpa.told(now.vdpa.name)["mac"], vdpa.owner(now.vdpa.device_path)) == (MAC, (ALICE, 0o600))


def test_a_stray_device_is_deleted_at_the_start(vifd: Daemon) -> None:
    with Client(vifd.socket, retry=NO_RETRY) as client:
        name = make_vdpa(client).vdpa.name
    vifd.kill()
    for file in vifd.state.iterdir():
        file.unlink()
    assert name in vdpa.devices()
    vifd.start()
    assert (list(vdpa.devices()), listed(vifd)) == ([FOREIGN], {})


@pytest.mark.parametrize(
    ("who", "step"),
    [
        ("helper", lambda vifd, name: (vifd.devices / "vdpa" / name).exists()),
        ("front", lambda _, name: (vdpa.DEVICES / name).exists()),
    ],
    ids=["helper marked it", "front made it"],
)
def test_who_is_killed_leaves_nothing_half_made_and_what_there_is_lives_on(
    vifd: Daemon, who: str, step: Callable[[Daemon, str], bool]
) -> None:
    # What is left after any one step, unit tests show.
    endpoint_id = new_id()
    name = names.device_name(Kind.VDPA, endpoint_id)
    with Client(vifd.socket, retry=NO_RETRY) as client:
        other = make_vdpa(client, owner=Owner(uid=ALICE))
    assert vifd.process is not None
    pid = vifd.helper_pid if who == "helper" else vifd.process.pid

    def kill() -> None:
        with contextlib.suppress(AssertionError):
            wait_for(lambda: step(vifd, name), 60)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    with vdpa.opened(other.vdpa.device_path, ALICE):
        killer.start()
        with Client(vifd.socket, retry=NO_RETRY) as client, contextlib.suppress(VifError):
            make_vdpa(client, endpoint_id, owner=Owner(uid=BOB))
        killer.join()
        vifd.wait_dead()
        vifd.start()
        found = listed(vifd)
        assert found[other.endpoint_id].vdpa == other.vdpa
        assert set(vdpa.devices()) == {FOREIGN, other.vdpa.name} | ({name} if endpoint_id in found else set())
    assert vdpa.owner(other.vdpa.device_path) == (ALICE, 0o600)


def test_a_driver_that_takes_it_first_lets_it_go(vifd: Daemon, client: Client) -> None:
    # The first that is loaded gets the devices to come.
    subprocess.run(["vdpa", "dev", "del", FOREIGN], check=True)
    subprocess.run(["modprobe", "-r", "vhost_vdpa"], check=True)
    with refusal("FAILED_PRECONDITION", "NO_ACCEPTABLE_KIND") as refused:
        make_vdpa(client)
    assert "load its module (modprobe vhost_vdpa)" in refused.value.message
    subprocess.run(["modprobe", "virtio_vdpa"], check=True)
    subprocess.run(["modprobe", "vhost_vdpa"], check=True)
    made = make_vdpa(client, owner=Owner(uid=ALICE)).vdpa
    assert (vdpa.bound(made.name), vdpa.owner(made.device_path)) == ("vhost_vdpa", (ALICE, 0o600))
    release_all(client)
    subprocess.run(["modprobe", "-r", "virtio_vdpa"], check=True)
    subprocess.run(["vdpa", "dev", "add", "name", FOREIGN, "mgmtdev", MANAGER, "mac", "52:54:00:00:00:07"], check=True)


def test_a_vifd_that_works_in_another_namespace_makes_them_too(vifd: Daemon, client: Client) -> None:
    mine = make_vdpa(client).vdpa.name
    with network_namespace() as netns, running(netns=netns, networks=NETWORKS) as other:
        with Client(other.socket, retry=NO_RETRY) as there:
            made = make_vdpa(there, owner=Owner(uid=BOB)).vdpa
            assert vdpa.owner(made.device_path) == (BOB, 0o600)
            assert set(vdpa.devices()) == {FOREIGN, mine, made.name}
            release_all(there)
        assert other.stop() == 0
