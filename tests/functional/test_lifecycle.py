"""Start, stop, reload, and what systemd is told."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.functional.conftest import ALICE, BOB
from tests.support import kernel
from tests.support.asking import asked, make, new_id, refusal, state_of
from tests.support.daemon import BLUE, Daemon, is_alive, network_namespace, short_directory, taps, wait_for
from tests.support.users import User
from vifclient import Client, VifError
from vifclient.retry import NO_RETRY

WARM = False

RED = """
[networks.red]
driver = "bridge"
bridge = "br-red"
"""


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, value in (line.split(":", 1) for line in lines)}


def maps(pid: int) -> str:
    return Path(f"/proc/{pid}/maps").read_text()


def reload(vifd: Daemon, networks: str) -> None:
    """Change the configuration and wait until vifd has read it."""
    assert vifd.process is not None
    read_before = vifd.log().count("configuration is")
    vifd.write_config(networks)
    vifd.process.send_signal(signal.SIGHUP)
    wait_for(lambda: vifd.log().count("configuration is") > read_before)


def networks_of(client: Client) -> list[str]:
    return [network.name for network in client.get_host_info().networks]


def test_the_front_process_is_nobody_with_no_capability_and_no_way_to_one(host: Daemon) -> None:
    assert host.process is not None
    front = status(host.process.pid)
    nobody = "\t".join(["65534"] * 4)
    assert (front["Uid"], front["Gid"], front["Groups"]) == (nobody, nobody, "")
    assert {front[key] for key in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {"0" * 16}
    assert front["NoNewPrivs"] == "1"


def test_every_thread_of_the_front_process_has_dropped_its_privileges(host: Daemon) -> None:
    assert host.process is not None
    for task in Path(f"/proc/{host.process.pid}/task").iterdir():
        lines = (task / "status").read_text()
        assert "CapPrm:\t0000000000000000" in lines
        assert "Uid:\t65534\t65534\t65534\t65534" in lines


def test_the_helper_has_cap_net_admin_alone(host: Daemon) -> None:
    helper = status(host.helper_pid)
    assert {helper["CapPrm"], helper["CapEff"]} == {f"{1 << 12:016x}"}
    assert {helper["CapInh"], helper["CapAmb"]} == {"0" * 16}
    assert helper["NoNewPrivs"] == "1"


def test_grpc_is_in_the_front_process_and_not_in_the_helper(host: Daemon, client: Client) -> None:
    assert host.process is not None
    make(client)
    assert "cygrpc" in maps(host.process.pid)
    assert "cygrpc" not in maps(host.helper_pid)


def test_the_journal_is_its_users_alone(host: Daemon) -> None:
    assert host.state.stat().st_mode & 0o777 == 0o700
    assert {(path.stat().st_uid, path.stat().st_mode & 0o077) for path in host.state.iterdir()} <= {(65534, 0o044), (65534, 0)}


def test_sigterm_answers_what_is_in_flight_and_takes_nothing_new(own: Daemon, own_client: Client) -> None:
    assert own.process is not None
    request = asked()
    with ThreadPoolExecutor(1) as pool:
        with own.helper_stopped():
            answer = pool.submit(own_client.request_endpoint, request)
            wait_for(lambda: state_of(own_client, request.endpoint_id) == "PENDING")
            own.process.send_signal(signal.SIGTERM)
            wait_for(lambda: "vifd stops" in own.log())
            with pytest.raises(VifError) as caught:
                make(own_client)
            assert caught.value.code == grpc.StatusCode.UNAVAILABLE
        endpoint = answer.result().endpoint
    assert own.wait_dead() == 0
    own.start()
    with Client(own.socket) as again:
        assert list(again.list_endpoints()) == [endpoint]
    assert [tap["ifindex"] for tap in taps(own.netns)] == [endpoint.tap.ifindex]


def test_sigterm_under_load_loses_no_answer_and_leaves_nothing_unanswered(own: Daemon) -> None:
    assert own.process is not None
    answered: list[str] = []

    def ask() -> None:
        with Client(own.socket, retry=NO_RETRY) as client, contextlib.suppress(VifError):
            while True:
                answered.append(make(client).endpoint_id)

    with ThreadPoolExecutor(4) as pool:
        for _ in range(4):
            pool.submit(ask)
        wait_for(lambda: len(answered) > 50)
        assert own.stop() == 0
    own.start()
    with Client(own.socket) as client:
        assert {endpoint.endpoint_id for endpoint in client.list_endpoints()} == set(answered)
    assert len(taps(own.netns)) == len(answered)


def test_sigterm_ends_a_watch_with_a_status_that_says_to_watch_again(own: Daemon, own_client: Client) -> None:
    with own_client.watch_endpoints() as watch:
        next(watch)
        assert own.process is not None
        own.process.send_signal(signal.SIGTERM)
        with refusal("UNAVAILABLE", "TRY_AGAIN"):
            next(watch)
    assert own.wait_dead() == 0


def test_both_processes_and_the_sockets_way_are_gone_after_a_stop(own: Daemon) -> None:
    helper = own.helper_pid
    assert own.stop() == 0
    wait_for(lambda: not is_alive(helper))
    with pytest.raises(ConnectionRefusedError), socket.socket(socket.AF_UNIX) as connection:
        connection.connect(own.socket)


def test_a_signal_to_both_processes_is_a_stop_like_any_other(own: Daemon, own_client: Client) -> None:
    """systemd and a terminal signal all processes of a service."""
    make(own_client)
    os.kill(own.helper_pid, signal.SIGTERM)
    make(own_client)
    assert own.stop() == 0


def test_sighup_adds_a_network(own: Daemon, own_client: Client) -> None:
    endpoint = make(own_client)
    reload(own, BLUE + RED)
    assert networks_of(own_client) == ["blue", "red"]
    assert kernel.settings(own.netns, "br-red")["linkinfo"]["info_kind"] == "bridge"
    assert make(own_client, network="red").HasField("tap")
    assert own_client.get_endpoint(endpoint.endpoint_id) == endpoint


def test_sighup_gives_a_network_another_bridge_and_its_ports_stay_where_they_are(own: Daemon, own_client: Client) -> None:
    old = make(own_client)
    reload(own, BLUE.replace("br-blue", "br-new"))
    new = make(own_client)
    masters = {old.tap.ifname: "br-blue", new.tap.ifname: "br-new"}
    assert {tap["ifname"]: tap["master"] for tap in taps(own.netns)} == masters
    own_client.release_endpoint(old.endpoint_id)
    own_client.release_endpoint(new.endpoint_id)
    assert taps(own.netns) == []


def test_sighup_takes_a_network_away_and_its_endpoints_stay(own: Daemon, own_client: Client) -> None:
    reload(own, BLUE + RED)
    endpoint = make(own_client, network="red")
    reload(own, BLUE)
    assert networks_of(own_client) == ["blue"]
    with refusal("NOT_FOUND", "UNKNOWN_NETWORK"):
        make(own_client, network="red")
    assert own_client.get_endpoint(endpoint.endpoint_id) == endpoint
    own_client.release_endpoint(endpoint.endpoint_id)
    assert taps(own.netns) == []


def test_sighup_changes_the_policy(own: Daemon, own_client: Client, alice: User, bob: User) -> None:
    with alice.client(own) as as_alice:
        endpoint = make(as_alice)
        reload(own, f"{BLUE}\n[[policy]]\nuid = {BOB}\n")
        with refusal("NOT_FOUND", "UNKNOWN_NETWORK"):
            make(as_alice)
        as_alice.release_endpoint(endpoint.endpoint_id)
    with alice.client(own) as as_alice, pytest.raises(VifError, match=f"is for uid {ALICE}"):
        make(as_alice)
    with bob.client(own) as as_bob:
        assert make(as_bob).owner.uid == BOB


@pytest.mark.parametrize("networks", ["[networks.blue]\nbrige = 'x'\n", "not TOML at all", BLUE + "\n[[policy]]\nrole = 'use'\n"])
def test_sighup_with_a_wrong_file_changes_nothing(own: Daemon, own_client: Client, networks: str) -> None:
    before = own_client.get_host_info()
    reload(own, networks)
    assert "the configuration is wrong and stays as it was" in own.log()
    assert own_client.get_host_info() == before
    assert make(own_client).HasField("tap")
    reload(own, BLUE + RED)
    assert networks_of(own_client) == ["blue", "red"]


def test_sighup_with_a_file_that_others_may_write_changes_nothing(own: Daemon, own_client: Client) -> None:
    assert own.process is not None
    own.write_config(BLUE + RED)
    own.config.chmod(0o666)
    own.process.send_signal(signal.SIGHUP)
    wait_for(lambda: "writable by root alone" in own.log())
    assert networks_of(own_client) == ["blue"]


def test_a_second_vifd_on_the_same_socket_is_refused_and_the_first_goes_on(own: Daemon, own_client: Client) -> None:
    assert own.process is not None
    endpoint = make(own_client)
    before = kernel.snapshot(own.netns)
    with network_namespace() as other:
        text = own.config.read_text().replace(own.netns, other).replace(str(own.state), f"{own.state}2")
        second = own.directory / "second.toml"
        second.write_text(text)
        done = subprocess.run([own.argv[0], "--config", str(second)], capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 1
        assert f"another vifd (pid {own.process.pid}) has the socket {own.socket}" in done.stderr
    assert kernel.snapshot(own.netns) == before
    assert list(own_client.list_endpoints()) == [endpoint]
    with Client(own.socket) as fresh:
        assert fresh.get_endpoint(endpoint.endpoint_id) == endpoint


def test_a_second_vifd_in_the_same_namespace_is_refused_and_the_first_goes_on(own: Daemon, own_client: Client) -> None:
    assert own.process is not None
    endpoint = make(own_client)
    before = kernel.snapshot(own.netns)
    with short_directory() as directory:
        second = Daemon(directory, netns=own.netns)
        done = subprocess.run(second.argv, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert f"another vifd (pid {own.process.pid}) has this network namespace" in done.stderr
    assert kernel.snapshot(own.netns) == before
    assert own_client.get_endpoint(endpoint.endpoint_id) == endpoint


def test_the_front_process_ends_when_the_helper_is_killed(own: Daemon) -> None:
    os.kill(own.helper_pid, signal.SIGKILL)
    assert own.wait_dead() == 1
    assert "a privileged process is lost" in own.log()


def test_the_helper_ends_when_the_front_process_is_killed(own: Daemon) -> None:
    helper = own.helper_pid
    own.kill()
    wait_for(lambda: not is_alive(helper))


def test_generations_grow_across_restarts(own: Daemon) -> None:
    endpoint_id, generations = new_id(), []
    stops: list[Callable[[], Any]] = [own.stop, own.kill, own.stop]
    for stop in stops:
        with Client(own.socket) as client:
            generations.append(make(client, endpoint_id).generation)
            client.release_endpoint(endpoint_id)
        stop()
        own.start()
    assert generations == sorted(set(generations))


def test_a_socket_of_a_vifd_that_is_no_more_is_taken_over(own: Daemon) -> None:
    own.kill()
    assert Path(own.socket).exists()
    own.start()
    with Client(own.socket) as client:
        assert networks_of(client) == ["blue"]


def test_a_file_in_the_sockets_place_is_left_alone() -> None:
    with short_directory() as directory, network_namespace() as netns:
        daemon = Daemon(directory, netns=netns)
        Path(daemon.socket).write_text("precious")
        done = subprocess.run(daemon.argv, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 1
        assert "is no socket" in done.stderr
        assert Path(daemon.socket).read_text() == "precious"
