"""Macvtaps and their nodes over the end of a vifd and the start of the next."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import stat
import threading
from pathlib import Path

from tests.support import kernel
from tests.support.asking import asked, release_all
from tests.support.daemon import Daemon, is_alive, wait_for
from tests.support.macvtaps import ALICE, macvtap, macvtaps, make_macvtap, nodes, sysfs_number
from tests.support.restarts import listed, restarted
from tests.support.wires import MACVTAP_MODES
from vifclient import Client, VifError
from vifclient.messages import Owner
from vifclient.retry import NO_RETRY


def test_endpoints_outlive_a_restart(own: Daemon, own_client: Client) -> None:
    endpoints = {one.endpoint_id: one for one in (make_macvtap(own_client, mode) for mode in ("bridge", "vepa"))}
    before = kernel.snapshot(own.netns)
    assert restarted(own) == endpoints
    assert kernel.snapshot(own.netns) == before
    assert set(nodes(own)) == {Path(one.macvtap.device_path) for one in endpoints.values()}


def test_a_macvtap_that_went_away_meanwhile_is_made_again(own: Daemon, own_client: Client) -> None:
    endpoint, first = make_macvtap(own_client), make_macvtap(own_client)
    own_client.release_endpoint(first.endpoint_id)
    assert own.stop() == 0
    kernel.run(own.netns, "link", "delete", endpoint.macvtap.ifname)
    own.start()
    found = listed(own)[endpoint.endpoint_id]
    (link,) = macvtaps(own.netns)
    assert (found.macvtap.ifname, found.macvtap.ifindex) == (link["ifname"], link["ifindex"])
    assert Path(found.macvtap.device_path).stat().st_rdev == sysfs_number(own.netns, link["ifname"])
    assert nodes(own) == [Path(found.macvtap.device_path)]


def test_a_node_that_went_away_meanwhile_is_made_again(own: Daemon, own_client: Client) -> None:
    endpoint = make_macvtap(own_client, owner=Owner(uid=ALICE, gid=4242))
    Path(endpoint.macvtap.device_path).unlink()
    assert restarted(own) == {endpoint.endpoint_id: endpoint}
    found = Path(endpoint.macvtap.device_path).stat()
    assert (found.st_uid, found.st_rdev) == (ALICE, sysfs_number(own.netns, endpoint.macvtap.ifname))


def test_nodes_without_a_device_are_swept_up(own: Daemon) -> None:
    assert own.stop() == 0
    stale = own.devices / "macvtap1048575"
    os.mknod(stale, stat.S_IFCHR | 0o600, os.makedev(os.major(Path("/dev/null").stat().st_rdev), 1048575))
    own.start()
    assert not stale.exists()


def test_a_stale_node_makes_way_for_the_device_that_gets_its_number(own: Daemon, own_client: Client) -> None:
    first = make_macvtap(own_client, owner=Owner(uid=ALICE, gid=4242))
    kernel.run(own.netns, "link", "delete", first.macvtap.ifname)
    second = make_macvtap(own_client, owner=Owner(uid=20002))
    number = sysfs_number(own.netns, second.macvtap.ifname)
    open_to = [path.stat().st_uid for path in nodes(own) if path.stat().st_rdev == number]
    assert open_to == [20002]


KILLS, SEED = 10, 20_251_124


def churn(vifd: Daemon, seed: int) -> None:
    """Request and release, alone and in batches, until vifd is gone."""
    chance = random.Random(seed)
    with Client(vifd.socket, retry=NO_RETRY) as client, contextlib.suppress(VifError):
        held: list[str] = []
        while True:
            if len(held) > 6 or (held and chance.random() < 0.4):
                release_all(client, held[:2])
                held = held[2:]
            else:
                wanted = [
                    asked(network="lan", acceptable=macvtap(chance.choice(MACVTAP_MODES[:3])))
                    for _ in range(chance.choice((1, 2, 4)))
                ]
                held += [answer.endpoint.endpoint_id for answer in client.batch_request_endpoints(wanted)]


def test_kills_at_random_moments_leave_no_stray_device_and_no_stray_node(own: Daemon) -> None:
    chance = random.Random(SEED)
    for _ in range(KILLS):
        callers = [threading.Thread(target=churn, args=(own, chance.getrandbits(32))) for _ in range(3)]
        for caller in callers:
            caller.start()
        helper = own.helper_pid
        threading.Event().wait(chance.uniform(0.05, 0.3))  # the moment is random
        assert own.process is not None
        os.kill(chance.choice((own.process.pid, helper)), signal.SIGKILL)
        own.wait_dead()
        for caller in callers:
            caller.join()
        wait_for(lambda helper=helper: not is_alive(helper))
        own.start()
        found = [endpoint.macvtap for endpoint in listed(own).values()]
        assert {(link["ifname"], link["ifindex"]) for link in macvtaps(own.netns)} == {(one.ifname, one.ifindex) for one in found}
        assert {(path, path.stat().st_rdev) for path in nodes(own)} == {
            (Path(one.device_path), sysfs_number(own.netns, one.ifname)) for one in found
        }
    with Client(own.socket, retry=NO_RETRY) as client:
        release_all(client)
    assert (macvtaps(own.netns), nodes(own)) == ([], [])
