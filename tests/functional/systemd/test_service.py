"""The units under a real systemd: everything that the service is forbidden, it really is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.functional.systemd.machine import MEMBER_UID, Machine, booted

NET_ADMIN = 1 << 12


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    with booted(tmp_path) as machine:
        yield machine


def vifctl(machine: Machine, *arguments: str) -> Any:
    return json.loads(machine.run("vifctl", "--json", *arguments, uid=MEMBER_UID).stdout or "null")


def endpoint_ids(machine: Machine) -> list[str]:
    return [endpoint["endpoint_id"] for endpoint in vifctl(machine, "list").get("endpoints", [])]


def main_pid(machine: Machine) -> str:
    return machine.systemctl("show", "--property=MainPID", "--value", "vifd")


def status(machine: Machine, pid: str) -> dict[str, str]:
    lines = machine.run("cat", f"/proc/{pid}/status").stdout.splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def children(machine: Machine, pid: str) -> dict[str, str]:
    """The children of a process, by what they are called."""
    pids = machine.run("cat", f"/proc/{pid}/task/{pid}/children").stdout.split()
    return {status(machine, child)["Name"]: child for child in pids}


def helper_pid(machine: Machine, pid: str) -> str:
    return next(child for name, child in children(machine, pid).items() if name != "vifd-dhcp")


def test_the_service_alone(machine: Machine) -> None:
    machine.systemctl("start", "vifd.service")
    main, before = status(machine, pid := main_pid(machine)), main_pid(machine)
    helper = status(machine, helper_pid(machine, pid))
    assert (main["Uid"].split()[0] != "0", int(main["CapPrm"], 16)) == (True, 0)
    assert (helper["Uid"].split()[0], int(helper["CapPrm"], 16)) == ("0", NET_ADMIN)
    vifctl(machine, "request", "default")
    (endpoint_id,) = endpoint_ids(machine)
    machine.systemctl("reload", "vifd.service")
    machine.run("kill", "-9", before)
    machine.wait_until("sh", "-c", f"test $(systemctl show -P MainPID vifd) != {before} && systemctl is-active vifd")
    assert endpoint_ids(machine) == [endpoint_id]
    vifctl(machine, "release", endpoint_id)
    assert "vdt" not in machine.run("ip", "-brief", "link").stdout


def test_a_queue_is_handed_over(machine: Machine) -> None:
    machine.systemctl("start", "vifd.service")
    shown = machine.run("vifctl", "run", "default", "--", "sh", "-c", "readlink /proc/self/fd/$VIF_FDS", uid=MEMBER_UID)
    assert shown.stdout.strip() == "/dev/net/tun"


@pytest.mark.parametrize("hidden", [False, True])
def test_processes_of_others_are_watched(machine: Machine, hidden: bool) -> None:
    """Also where /proc hides them, on kernels that tell of them otherwise (Linux 6.13)."""
    drop_in = "/etc/systemd/system/vifd.service.d"
    if hidden:
        machine.run("sh", "-c", f"mkdir {drop_in} && printf '[Service]\\nProtectProc=invisible\\n' >{drop_in}/hidden.conf")
        machine.systemctl("daemon-reload")
    machine.systemctl("start", "vifd.service")
    script = "vifctl request default --process $$ && vifctl list"
    assert "ready" in machine.run("sh", "-c", script, uid=MEMBER_UID).stdout
    machine.wait_until("sh", "-c", "! ip -brief link | grep -q vdt")


def test_the_socket_unit_starts_the_service(machine: Machine) -> None:
    machine.systemctl("start", "vifd.socket")
    assert endpoint_ids(machine) == []
    machine.systemctl("restart", "vifd.service")
    assert endpoint_ids(machine) == []
    machine.systemctl("stop", "vifd.service")
    assert endpoint_ids(machine) == []


def test_who_is_not_in_the_group_is_not_let_in(machine: Machine) -> None:
    machine.systemctl("start", "vifd.socket")
    done = machine.run("vifctl", "list", uid=65534, check=False)
    assert (done.returncode, "may not open" in done.stderr) == (3, True)


MKNOD, CHOWN = 1 << 27, 1 << 0
DIRECT = '[networks.lan]\ndriver = "direct"\nuplink = "up0"\n'


def test_a_direct_network_with_the_drop_in(machine: Machine) -> None:
    machine.run("ip", "link", "add", "up0", "type", "veth", "peer", "name", "far0")
    machine.run("ip", "link", "set", "far0", "up")
    machine.run("sh", "-c", f"echo '{DIRECT}' >>/etc/vifd/vifd.toml")
    machine.systemctl("start", "vifd.service")
    assert "CAP_MKNOD and CAP_CHOWN" in machine.log()
    drop_in = "/etc/systemd/system/vifd.service.d"
    machine.run("sh", "-c", f"mkdir {drop_in} && cp /opt/vifd/systemd/direct.conf {drop_in}/")
    machine.systemctl("daemon-reload")
    machine.systemctl("restart", "vifd.service")
    capabilities = int(status(machine, helper_pid(machine, main_pid(machine)))["CapPrm"], 16)
    assert capabilities == NET_ADMIN | MKNOD | CHOWN
    made = vifctl(machine, "request", "lan", "--kind", "macvtap")["endpoint"]["macvtap"]
    machine.run("sh", "-c", f"exec 3<>{made['device_path']}", uid=MEMBER_UID)
    assert machine.run("sh", "-c", f"exec 3<>{made['device_path']}", uid=65534, check=False).returncode != 0
    shown = machine.run("vifctl", "run", "lan", "--", "sh", "-c", "readlink /proc/self/fd/$VIF_FDS", uid=MEMBER_UID)
    assert shown.stdout.startswith("/dev/vifd/")


SRIOV = '[networks.fast]\ndriver = "sriov"\npfs = ["up0"]\n'


def wait_until_said(machine: Machine, words: str) -> None:
    """Wait until the journal has what vifd says when it has started, for it takes that in a little later."""
    machine.wait_until("sh", "-c", f"journalctl --no-pager --unit=vifd | grep -qF '{words}'")


def test_an_sriov_network_with_the_drop_in(machine: Machine) -> None:
    machine.run("ip", "link", "add", "up0", "type", "veth", "peer", "name", "far0")
    machine.run("sh", "-c", f"echo '{SRIOV}' >>/etc/vifd/vifd.toml")
    machine.systemctl("start", "vifd.service")
    assert "driver sriov takes CAP_CHOWN, which vifd wasn't started with (systemd/sriov.conf)" in machine.log()
    assert int(status(machine, helper_pid(machine, main_pid(machine)))["CapPrm"], 16) == NET_ADMIN
    drop_in = "/etc/systemd/system/vifd.service.d"
    machine.run("sh", "-c", f"mkdir {drop_in} && cp /opt/vifd/systemd/sriov.conf {drop_in}/")
    machine.systemctl("daemon-reload")
    machine.systemctl("restart", "vifd.service")
    wait_until_said(machine, "driver sriov takes a /sys/bus/pci that vifd may write, and it is mounted read-only")
    machine.run("mount", "-o", "remount,rw", "/sys")
    machine.systemctl("restart", "vifd.service")
    helper = helper_pid(machine, main_pid(machine))
    assert int(status(machine, helper)["CapPrm"], 16) == NET_ADMIN | CHOWN
    wait_until_said(machine, "PF up0 is no PCI device")
    # What the helper writes to is writable for it, and nothing beside it in sysfs.
    mounts = machine.run("cat", f"/proc/{helper}/mounts").stdout.splitlines()
    options = {fields[1]: fields[3].split(",")[0] for fields in (line.split() for line in mounts) if fields[2] == "sysfs"}
    assert (options["/sys"], options["/sys/bus/pci"], options["/sys/devices"]) == ("ro", "rw", "rw")


def test_a_namespace_with_the_drop_in(machine: Machine) -> None:
    machine.run("ip", "netns", "add", "blue")
    drop_in = "/etc/systemd/system/vifd.service.d"
    machine.run("sh", "-c", f"mkdir {drop_in} && cp /opt/vifd/systemd/netns.conf {drop_in}/")
    machine.run("sed", "-i", 's/^# netns = .*/netns = "blue"/', "/etc/vifd/vifd.toml")
    machine.systemctl("daemon-reload")
    machine.systemctl("start", "vifd.service")
    vifctl(machine, "request", "default")
    assert "vdt" in machine.run("ip", "-netns", "blue", "-brief", "link").stdout
    assert int(status(machine, helper_pid(machine, main_pid(machine)))["CapPrm"], 16) == NET_ADMIN


def test_dhcp_is_served_within_the_sandbox(machine: Machine) -> None:
    machine.run(
        "sed",
        "-i",
        's/^addresses = .*/addresses = ["192.168.177.1\\/24", "fd00:177::1\\/64"]/',
        "/etc/vifd/vifd.toml",
    )
    machine.systemctl("start", "vifd.service")
    machine.wait_until("sh", "-c", "journalctl --no-pager --unit=vifd | grep -q 'dhcp is served'")
    before = children(machine, main_pid(machine))["vifd-dhcp"]
    supervisor = status(machine, before)
    server = status(machine, children(machine, before)["dnsmasq"])
    assert int(supervisor["CapPrm"], 16) == 1 << 5 | 1 << 6 | 1 << 7 | 1 << 10 | NET_ADMIN | 1 << 13
    assert int(server["CapPrm"], 16) == 1 << 10 | NET_ADMIN | 1 << 13
    assert machine.run("id", "-u", "vifd-dhcp").stdout.strip() == server["Uid"].split()[0]
    listening = {line.split()[3] for line in machine.run("ss", "-lnuH").stdout.splitlines()}
    assert {"0.0.0.0%br-vifd:67", "[::]%br-vifd:547", "192.168.177.1:53"} <= listening
    machine.run("kill", "-9", children(machine, before)["dnsmasq"])
    machine.wait_until("sh", "-c", "test $(journalctl --no-pager --unit=vifd | grep -c 'dhcp is served') = 2")
    machine.systemctl("restart", "vifd.service")
    machine.wait_until("sh", "-c", "test $(journalctl --no-pager --unit=vifd | grep -c 'dhcp is served') = 3")
    machine.systemctl("stop", "vifd.service")
    assert machine.run("pgrep", "dnsmasq", check=False).stdout == ""
