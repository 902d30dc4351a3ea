"""vifd with networks that have DHCP: its processes, and what is told of them."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import pytest

from tests.support import kernel
from tests.support.asking import make
from tests.support.daemon import Daemon, is_alive, running, wait_for
from tests.support.dhcp import Guest, children, guest
from vifclient import Client

BLUE = '[networks.blue]\ndriver = "bridge"\nbridge = "br-blue"\naddresses = ["10.91.0.1/24", "fd00:91::1/64"]\n'
SERVED = BLUE + "dhcp = true\n"


def server_pid(daemon: Daemon) -> int:
    """The pid of its dnsmasq; 0: there is none."""
    for pid in children(daemon.dhcp_pid):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/comm").read_text() == "dnsmasq\n":  # and not about to become it
                return pid
    return 0


def answers(guest: Guest) -> bool:
    """Whether DNS is answered by IPv6."""
    try:
        return guest.resolve("fd00:91::1", "none") == []
    except OSError:
        return False


def problem(client: Client) -> str:
    """What is told of the network."""
    (network,) = client.get_host_info().networks
    return network.offers[0].message


def test_guests_are_served_from_the_start_to_the_end() -> None:
    with running(networks=SERVED) as daemon, Client(daemon.socket) as client:
        supervisor, server = daemon.dhcp_pid, wait_for(lambda: server_pid(daemon))
        wait_for(lambda: "dhcp is served" in daemon.log())
        with guest(daemon.netns, "br-blue", "52:54:00:00:00:0a") as one:
            wait_for(one.default_routes6)
            kernel.run(one.netns, "address", "add", "fd00:91::a/64", "dev", "eth0", "nodad")
            wait_for(lambda: answers(one))
        assert problem(client) == ""
        make(client)
        assert daemon.stop() == 0
        assert not is_alive(supervisor)
        assert not is_alive(server)
        assert "Traceback" not in daemon.log()


def test_without_dhcp_there_is_no_supervisor() -> None:
    with running(networks=BLUE) as daemon:
        with pytest.raises(StopIteration):
            _ = daemon.dhcp_pid
        assert not Path(f"{daemon.socket}.dhcp").exists()


def test_the_first_network_with_dhcp_takes_a_restart() -> None:
    with running(networks=BLUE) as daemon, Client(daemon.socket) as client:
        daemon.write_config(SERVED)
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGHUP)
        wait_for(lambda: "takes a restart" in problem(client))
        make(client)
        daemon.write_config(BLUE)
        daemon.process.send_signal(signal.SIGHUP)
        wait_for(lambda: problem(client) == "")
        daemon.write_config(SERVED)
        assert daemon.stop() == 0
        daemon.start()
        assert wait_for(lambda: server_pid(daemon))


def test_a_reload_changes_what_guests_are_told_and_a_wrong_one_nothing() -> None:
    with running(networks=SERVED) as daemon:
        assert daemon.process is not None
        before = wait_for(lambda: server_pid(daemon))
        wait_for(lambda: "dhcp is served" in daemon.log())
        daemon.write_config(SERVED + "nonsense = 1\n")
        daemon.process.send_signal(signal.SIGHUP)
        wait_for(lambda: "stays as it was" in daemon.log())
        assert server_pid(daemon) == before
        daemon.write_config(SERVED + 'dns = ["192.0.2.53"]\n')
        daemon.process.send_signal(signal.SIGHUP)
        after = wait_for(lambda: server_pid(daemon) not in (0, before) and server_pid(daemon))
        assert b"--server=192.0.2.53" in Path(f"/proc/{after}/cmdline").read_bytes()


def test_a_missing_user_is_told_with_the_network_and_stops_nobody() -> None:
    with running(networks=SERVED, daemon='# dhcp_user = ""') as daemon, Client(daemon.socket) as client:
        text = daemon.config.read_text().replace('dhcp_user = "dnsmasq"', 'dhcp_user = "vifd-nobody"')
        assert daemon.stop() == 0
        daemon.config.write_text(text)
        daemon.start()
        wait_for(lambda: "no user that DHCP servers may run as" in problem(client))
        make(client)
        assert problem(client) != ""


@pytest.mark.parametrize("which", ["front", "supervisor", "helper"])
def test_whichever_process_dies_the_others_follow_and_a_restart_serves_again(which: str) -> None:
    with running(networks=SERVED) as daemon:
        assert daemon.process is not None
        wait_for(lambda: "dhcp is served" in daemon.log())
        pids = {"front": daemon.process.pid, "supervisor": daemon.dhcp_pid, "helper": daemon.helper_pid}
        server = server_pid(daemon)
        os.kill(pids[which], signal.SIGKILL)
        assert daemon.wait_dead() != 0
        for pid in (*pids.values(), server):
            wait_for(lambda pid=pid: not is_alive(pid))
        daemon.start()
        assert wait_for(lambda: server_pid(daemon)) != server
