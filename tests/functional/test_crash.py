"""kill -9 of either process at random moments: no answered endpoint is lost, and no device is left that no record knows."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.asking import BRIDGE, TAP, asked, new_id
from tests.support.children import child
from tests.support.daemon import Daemon, is_alive, network_namespace, short_directory, taps, wait_for
from tests.support.restarts import listed
from vifclient import Client, VifError
from vifclient.messages import Endpoint, EndpointState, ReleaseEndpointRequest
from vifclient.retry import NO_RETRY

SEED = 20_250_713
KILLS_UNDER_LOAD, KILLS_AT_START = 80, 20
CLIENTS = 4
ENDPOINTS_A_CLIENT = 12
READY = EndpointState.ENDPOINT_STATE_READY


class Caller(threading.Thread):
    """A hypervisor driver that requests and releases, alone and in batches, until vifd is gone; it remembers every answer.

    Args:
        vifd: the daemon.
        seed: of its own random choices.
        answered: what the callers before it were promised: generations by id.
    """

    def __init__(self, vifd: Daemon, seed: int, answered: dict[str, int]) -> None:
        super().__init__()
        self._vifd, self._random = vifd, random.Random(seed)
        #: Endpoints whose request was answered and whose release wasn't begun.
        self.held = answered
        #: Ids with a call that was never answered.
        self.unknown: set[str] = set()
        self.gone: set[str] = set()
        self.calls = 0
        self.unexpected: list[VifError] = []

    def run(self) -> None:
        with Client(self._vifd.socket, retry=NO_RETRY) as client:
            try:
                while True:
                    self._turn(client)
                    self.calls += 1
            except VifError as error:
                if error.code.name not in ("UNAVAILABLE", "CANCELLED", "UNKNOWN"):
                    self.unexpected.append(error)

    def _turn(self, client: Client) -> None:
        count = self._random.choice((1, 1, 1, 2, 5))
        if len(self.held) + count > ENDPOINTS_A_CLIENT or (self.held and self._random.random() < 0.4):
            self._release(client, self._random.sample(sorted(self.held), min(count, len(self.held))))
        else:
            self._request(client, [new_id() for _ in range(count)])

    def _request(self, client: Client, ids: list[str]) -> None:
        kind = self._random.choice((TAP, TAP, TAP, BRIDGE))
        self.unknown = set(ids)
        if len(ids) == 1:
            answers = [client.request_endpoint(asked(ids[0], acceptable=[kind]))]
        else:
            answers = client.batch_request_endpoints([asked(one, acceptable=[kind]) for one in ids])
        self.unknown = set()
        self.held |= {answer.endpoint.endpoint_id: answer.endpoint.generation for answer in answers}

    def _release(self, client: Client, ids: list[str]) -> None:
        self.unknown = set(ids)
        for one in ids:
            del self.held[one]
        if len(ids) == 1:
            client.release_endpoint(ids[0])
        else:
            client.batch_release_endpoints([ReleaseEndpointRequest(endpoint_id=one) for one in ids])
        self.unknown = set()
        self.gone |= set(ids)


@pytest.fixture
def vifd() -> Iterator[Daemon]:
    with contextlib.ExitStack() as stack:
        directory, netns = stack.enter_context(short_directory()), stack.enter_context(network_namespace())
        daemon = Daemon(directory, netns=netns)
        stack.callback(daemon.kill)
        yield daemon
        print(daemon.log()[-5000:])


def check_taps(vifd: Daemon, found: dict[str, Endpoint]) -> None:
    """Every tap of the kernel is one of the list, and the other way round."""
    expected = {(e.tap.ifname, e.tap.ifindex, f"vifd:{one}", "br-blue") for one, e in found.items() if e.HasField("tap")}
    assert {(tap["ifname"], tap["ifindex"], tap.get("ifalias"), tap.get("master")) for tap in taps(vifd.netns)} == expected
    assert {endpoint.state for endpoint in found.values()} <= {READY}


def kill(vifd: Daemon, victim: str) -> None:
    """Kill one process; the other leaves by itself, and the front doesn't call that a success."""
    assert vifd.process is not None
    front, helper = vifd.process.pid, vifd.helper_pid
    os.kill(front if victim == "front" else helper, signal.SIGKILL)
    assert vifd.wait_dead() == (-signal.SIGKILL if victim == "front" else 1)
    wait_for(lambda: not is_alive(helper))


@pytest.mark.timeout(900)
def test_kills_at_random_moments_lose_no_answer_and_leave_no_stray(vifd: Daemon) -> None:
    chance = random.Random(SEED)
    held: list[dict[str, int]] = [{} for _ in range(CLIENTS)]
    calls = 0
    vifd.start()
    for _ in range(KILLS_UNDER_LOAD):
        callers = [Caller(vifd, chance.getrandbits(32), one) for one in held]
        for caller in callers:
            caller.start()
        # The moment is random, by calls and by time.
        goal, pause_s, victim = chance.randrange(60), chance.uniform(0, 0.02), chance.choice(("front", "helper"))
        wait_for(lambda goal=goal, callers=callers: sum(caller.calls for caller in callers) >= goal)
        threading.Event().wait(pause_s)
        kill(vifd, victim)
        for caller in callers:
            caller.join()
        assert [error for caller in callers for error in caller.unexpected] == []
        calls += sum(caller.calls for caller in callers)
        vifd.start()
        found = listed(vifd)
        check_taps(vifd, found)
        promised = {one: generation for caller in callers for one, generation in caller.held.items()}
        unknown = {one for caller in callers for one in caller.unknown}
        assert {one: found[one].generation for one in promised if one in found} == promised
        assert set(found) - set(promised) <= unknown
        assert not set(found) & {one for caller in callers for one in caller.gone}
        for caller in callers:  # also a batch that was never answered is there as a whole, or not at all
            assert caller.unknown <= set(found) or not caller.unknown & set(found)
        for caller in callers:  # who asks again gets, or is rid of, what was never answered
            caller.held |= {one: found[one].generation for one in caller.unknown if one in found}
    assert calls > KILLS_UNDER_LOAD * 10
    before = listed(vifd)
    assert vifd.stop() == 0
    vifd.start()
    assert listed(vifd) == before
    check_taps(vifd, before)


def test_kills_at_random_moments_of_the_start_change_nothing_for_the_next(vifd: Daemon) -> None:
    chance = random.Random(SEED)
    vifd.start()
    with Client(vifd.socket) as client:
        for _ in range(5):
            client.batch_request_endpoints([asked(acceptable=[kind]) for kind in (TAP, TAP, BRIDGE)])
    expected = listed(vifd)
    vifd.kill()
    ends = set()
    for _ in range(KILLS_AT_START):
        with vifd.log_path.open("ab") as log, child(vifd.argv, stderr=log, stdout=log) as process:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
            if chance.random() < 0.5:
                # A start waits for its helper, however slow the machine is; who has ended already leaves the front to be killed.
                helper = int(wait_for(children.read_text).split()[0])
                threading.Event().wait(chance.uniform(0, 0.2))
                try:
                    os.kill(helper, signal.SIGKILL)
                except ProcessLookupError:
                    process.kill()
            else:
                threading.Event().wait(chance.uniform(0.1, 0.45))
                process.kill()
            ends.add(process.wait(30))
    assert ends == {1, -signal.SIGKILL}
    vifd.start()
    assert listed(vifd) == expected
    check_taps(vifd, expected)
