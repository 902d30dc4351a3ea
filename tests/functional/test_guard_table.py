"""The guard's table in the kernel: owned or not, taken over, put back; and tags on a trunk."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support import frames, guests, kernel
from tests.support.daemon import ip, network_namespace, wait_for
from vifd.kernel.nft import ruleset, sets
from vifd.kernel.nft.devices import DeviceGuard
from vifd.kernel.nft.elements import NOTHING, Elements, guarded, limited
from vifd.kernel.nft.guard import Guard, NoGuard, open_guard
from vifd.kernel.nft.ruleset import Ruleset
from vifd.kernel.nft.wire import NftError

MAC, FOREIGN_MAC = "02:00:00:00:00:01", "02:00:00:00:00:66"


@pytest.fixture
def netns() -> Iterator[str]:
    with network_namespace() as name:
        yield name


@contextlib.contextmanager
def opened(netns: str, *, owned: bool = True, rules: Ruleset = ruleset.BRIDGE) -> Iterator[Guard]:
    made = kernel.inside(netns, lambda: open_guard(rules, owned=owned))
    assert not isinstance(made, NoGuard)
    try:
        yield made
    finally:
        made.close()


def nft(netns: str, *arguments: str) -> str:
    done = subprocess.run(["ip", "netns", "exec", netns, "nft", *arguments], check=False, capture_output=True, text=True)
    return done.stdout if done.returncode == 0 else f"refused: {done.stderr}"


def test_an_owned_table_is_nobody_elses_and_outlives_its_owner(netns: str) -> None:
    wanted = guarded(1, [MAC], ["10.0.0.1", "10.1.0.0/16", "fd00::1"], trunk=False)
    with opened(netns) as guard:
        guard.put({1: wanted})
        assert nft(netns, "flush", "ruleset") == ""
        assert nft(netns, "delete", "table", "bridge", "vifd").startswith("refused")
        assert guard.has(1, wanted)
        assert not guard.restore()
    with opened(netns) as second:
        assert second.has(1, wanted)
        assert second.ports == {1}


def test_a_second_owner_is_refused(netns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vifd.kernel.nft.table.OWNER_PATIENCE_S", 0)
    with opened(netns) as guard:
        guard.put({1: guarded(1, [MAC], [], trunk=False)})
        with pytest.raises(NftError), opened(netns):
            pass
        assert guard.has(1, guarded(1, [MAC], [], trunk=False))


def test_an_owner_that_is_about_to_end_is_waited_for(netns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = guarded(1, [MAC], [], trunk=False)
    with opened(netns) as first:
        first.put({1: wanted})
        monkeypatch.setattr("vifd.kernel.nft.table.time.sleep", lambda _: first.close())
        with opened(netns) as second:
            assert second.has(1, wanted)


def test_a_table_that_is_not_owned_is_put_back(netns: str) -> None:
    wanted = guarded(1, [MAC], ["10.0.0.1"], trunk=False)
    with opened(netns, owned=False) as guard:
        guard.put({1: wanted})
        for damage in ("flush ruleset", "flush chain bridge vifd sender", "flush set bridge vifd macs"):
            assert nft(netns, *damage.split()) == ""
            assert guard.restore()
            assert guard.has(1, wanted)
            assert not guard.restore()


def handles(netns: str, chain: str) -> list[str]:
    """The handles of a chain's rules, in order, as nft shows them."""
    return re.findall(
        r"# handle (\d+)$", nft(netns, "-a", "list", "chain", "bridge", "vifd", chain).split("\n", 2)[2], re.MULTILINE
    )


#: What leaves as many rules as there were, or all of them; {0} and {1} are the first rules of chain `sender`.
EXCHANGES = (
    "replace rule bridge vifd sender handle {0} accept",
    "delete rule bridge vifd sender handle {0}; insert rule bridge vifd sender accept",
    "delete rule bridge vifd sender handle {0}; add rule bridge vifd trunk accept",
    "chain bridge vifd prerouting {{ policy drop; }}",
    "add chain bridge vifd other {{ type filter hook prerouting priority 0; policy drop; }}",
    "add chain bridge vifd other",
)


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_a_rule_or_policy_that_is_exchanged_for_another_is_put_back(netns: str, exchange: str) -> None:
    wanted = guarded(1, [MAC], ["10.0.0.1"], trunk=False)
    with opened(netns, owned=False) as guard:
        guard.put({1: wanted})
        before = nft(netns, "-s", "list", "table", "bridge", "vifd")
        assert nft(netns, exchange.format(*handles(netns, "sender"))) == ""
        assert guard.restore()
        assert guard.has(1, wanted)
        assert not guard.restore()
        later = before.replace("priority -350", "priority -349")
        assert nft(netns, "-s", "list", "table", "bridge", "vifd") == later


def test_a_rule_that_was_exchanged_while_nobody_looked_is_put_back_at_the_next_start(netns: str) -> None:
    wanted = guarded(1, [MAC], [], trunk=False)
    with opened(netns, owned=False) as guard:
        guard.put({1: wanted})
    assert nft(netns, f"replace rule bridge vifd sender handle {handles(netns, 'sender')[0]} accept") == ""
    with opened(netns, owned=False) as guard:
        assert "accept" not in nft(netns, "list", "chain", "bridge", "vifd", "sender")
        assert guard.has(1, wanted)
        assert not guard.restore()


@pytest.mark.parametrize("before", [True, False])
def test_a_table_changes_hands(netns: str, before: bool) -> None:
    wanted = guarded(1, [MAC], [], trunk=False)
    with opened(netns, owned=before) as first:
        first.put({1: wanted})
    with opened(netns, owned=not before) as second:
        assert second.has(1, wanted)
        assert nft(netns, "list", "table", "bridge", "vifd").count("flags owner") == (not before)


def test_the_chains_of_a_new_table_come_after_the_old_ones(netns: str) -> None:
    def priority() -> int:
        shown = json.loads(nft(netns, "-j", "list", "chain", "bridge", "vifd", "prerouting"))["nftables"]
        return int(next(one["chain"]["prio"] for one in shown if "chain" in one))

    with opened(netns, owned=False) as guard:
        guard.put({1: guarded(1, [MAC], [], trunk=False)})
        first = priority()
        found = []
        for _ in range(41):
            nft(netns, "flush", "chain", "bridge", "vifd", "sender")
            assert guard.restore()
            found.append(priority() - first)
        assert found == [*range(1, 40), 0, 1]
        nft(netns, "flush", "ruleset")
        assert guard.restore()
        assert priority() == first


def test_nft_can_read_all_of_it(netns: str) -> None:
    ports = {
        1: guarded(1, [MAC], ["10.0.0.1", "10.1.0.0/16", "fd00::1"], trunk=False) | {limited(1, sets.PPS_TO_VM, 100, 64)},
        2: guarded(2, [FOREIGN_MAC], [], trunk=False, is_limited=True) | {limited(2, sets.BPS_FROM_VM, 10**6, 10**5)},
    }
    with opened(netns) as guard:
        guard.put(ports)
        done = subprocess.run(
            ["ip", "netns", "exec", netns, "nft", "list", "ruleset"], capture_output=True, text=True, check=True
        )
    assert done.stderr == ""
    for words in ("hook prerouting", "hook postrouting", "@senders4 accept", "limit name iif map @bps_from_vm", FOREIGN_MAC):
        assert words in done.stdout


def test_what_a_vm_gets_is_hooked_while_a_port_has_a_limit(netns: str) -> None:
    wanted = guarded(1, [MAC], [], trunk=False)
    with opened(netns) as guard:
        guard.put({1: wanted | {limited(1, sets.PPS_TO_VM, 100, 64)}})
    with opened(netns) as guard:
        assert "hook postrouting" in nft(netns, "list", "table", "bridge", "vifd")
        guard.put({1: wanted})
        assert "hook postrouting" not in nft(netns, "list", "table", "bridge", "vifd")
        assert "hook prerouting" in nft(netns, "list", "table", "bridge", "vifd")
        guard.put({1: NOTHING})
        assert "hook" not in nft(netns, "list", "table", "bridge", "vifd")


def test_a_device_that_crosses_no_bridge_has_the_chains_that_it_needs(netns: str) -> None:
    kernel.make_tap(netns, "dev0")
    index = ip(netns, "link", "show", "dev0")[0]["ifindex"]

    def open_devices() -> Guard | NoGuard:
        return open_guard(ruleset.NETDEV, made=lambda: DeviceGuard(ruleset.NETDEV))

    def chains() -> set[str]:
        shown = nft(netns, "list", "table", "netdev", "vifd")
        return {name for name in (f"out-{index}", f"in-{index}") if f"chain {name}" in shown}

    made = kernel.inside(netns, open_devices)
    assert isinstance(made, DeviceGuard)
    with contextlib.closing(made) as guard:

        def put(wanted: Elements) -> None:
            kernel.inside(netns, lambda: guard.put({index: wanted}))

        plain = guarded(index, [MAC], [], trunk=False)
        put(plain)
        assert chains() == {f"out-{index}"}
        put(plain | {limited(index, sets.BPS_TO_VM, 10**6, 10**5)})
        assert chains() == {f"out-{index}", f"in-{index}"}
        put(plain)
        assert chains() == {f"out-{index}"}
        assert not kernel.inside(netns, guard.restore)
        kernel.run(netns, "link", "delete", "dev0")
        put(NOTHING)
        assert chains() == set()
        assert not kernel.inside(netns, guard.restore)


def test_on_a_trunk_one_tag_passes_and_a_second_does_not(netns: str) -> None:
    kernel.run(netns, "link", "add", "br0", "type", "bridge")
    kernel.run(netns, "link", "set", "br0", "up")
    with opened(netns) as guard, contextlib.ExitStack() as stack:
        fds = [stack.enter_context(port_of_a_bridge(netns, name)) for name in ("guest0", "far0")]
        index = ip(netns, "link", "show", "guest0")[0]["ifindex"]
        guard.put({index: guarded(index, [MAC], [], trunk=True)})
        plain = frames.probe(MAC, 1)

        def arrives(frame: bytes) -> bool:
            return frame in through(fds, frame)

        wait_for(lambda: arrives(plain))
        assert arrives(frames.tagged(plain, (0x8100, 5)))
        for tags in (((0x8100, 5), (0x8100, 6)), ((0x8100, 5), (0x88A8, 6)), ((0x88A8, 5),), ((0x88A8, 5), (0x8100, 6))):
            assert not arrives(frames.tagged(plain, *tags))
        assert not arrives(frames.tagged(frames.probe(FOREIGN_MAC, 2), (0x8100, 5)))
        assert not arrives(frames.tagged(frames.router_advertisement(MAC, "fe80::1"), (0x8100, 5)))
        assert guests.counters(netns)["tag"] == 4
        assert arrives(plain)


def test_another_versions_rules_are_replaced_and_nothing_passes_meanwhile(netns: str) -> None:
    others = ruleset.BRIDGE._replace(chains={**ruleset.BRIDGE.chains, "another": ()})
    kernel.run(netns, "link", "add", "br0", "type", "bridge")
    kernel.run(netns, "link", "set", "br0", "up")
    with contextlib.ExitStack() as stack:
        fds = [stack.enter_context(port_of_a_bridge(netns, name)) for name in ("guest0", "far0")]
        index = ip(netns, "link", "show", "guest0")[0]["ifindex"]
        wanted = guarded(index, [MAC], ["10.0.0.1"], trunk=False)
        forged, legal = (frames.ip4(MAC, source, "10.0.0.9", frames.UDP, frames.udp(1, 2)) for source in ("10.0.0.2", "10.0.0.1"))
        with opened(netns, rules=others) as guard:
            guard.put({index: wanted})
            wait_for(lambda: legal in through(fds, legal))
        for turn in range(100):
            flood = stack.enter_context(ThreadPoolExecutor(1)).submit(lambda: through(fds, *[forged, legal] * 100))
            with opened(netns, rules=ruleset.BRIDGE if turn % 2 else others) as guard:
                assert guard.has(index, wanted)
            got = flood.result()
            assert forged not in got
            assert legal in got


@contextlib.contextmanager
def port_of_a_bridge(netns: str, name: str) -> Iterator[int]:
    fd = kernel.open_tap(netns, name)
    try:
        os.set_blocking(fd, False)
        kernel.run(netns, "link", "set", name, "master", "br0", "up")
        yield fd
    finally:
        os.close(fd)


def through(fds: list[int], *sent: bytes) -> list[bytes]:
    """What comes out of the second tap while frames go into the first."""
    got = []
    for frame in sent:
        os.write(fds[0], bytes(10) + frame)
        with contextlib.suppress(BlockingIOError):
            while True:
                got.append(os.read(fds[1], 2048)[10:])
    return got
