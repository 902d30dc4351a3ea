"""A systemd of its own for tests of the units: init of a pid namespace, on an overlay of this host's file system.

It has namespaces for all that systemd touches, and a private network; nothing of the host's changes. vifd runs from this
checkout, bound to /opt, since the unit hides home directories.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).parents[3]
READY_SECONDS = 60.0
MEMBER_UID = 5001

_BOOT = r"""
set -eu
mount --make-rprivate /
mount -t tmpfs tmpfs "$BASE"
mkdir "$BASE/upper" "$BASE/work" "$ROOT"
mount -t overlay overlay -o "lowerdir=/,upperdir=$BASE/upper,workdir=$BASE/work" "$ROOT"
mount -t proc proc "$ROOT/proc"
mount -t sysfs -o ro sysfs "$ROOT/sys"
mount -t cgroup2 cgroup2 "$ROOT/sys/fs/cgroup"
for directory in run tmp dev; do mount -t tmpfs tmpfs "$ROOT/$directory"; done
device() { mknod -m 666 "$ROOT/dev/$1" c "$2" "$3"; }
device null 1 3; device zero 1 5; device full 1 7; device random 1 8; device urandom 1 9; device tty 5 0
mkdir -p "$ROOT/dev/net" "$ROOT/dev/pts" "$ROOT/dev/shm"
device net/tun 10 200
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$ROOT/dev/pts"
ln -s pts/ptmx "$ROOT/dev/ptmx"; ln -s /proc/self/fd "$ROOT/dev/fd"
touch "$ROOT/dev/console"; mount --bind /dev/null "$ROOT/dev/console"
mkdir -p "$ROOT/opt/vifd" "$ROOT/opt/python" "$ROOT/opt/site"
mount --bind "$CHECKOUT" "$ROOT/opt/vifd"
mount --bind "$PYTHON" "$ROOT/opt/python"
mount --bind "$SITE" "$ROOT/opt/site"
rm -rf "$ROOT/etc/systemd/system"
cp -r "$FILES/." "$ROOT/"
cd "$ROOT"; mkdir -p old; pivot_root . old; umount -l /old
trap '' HUP
exec env -i container=vifd-test PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --system --unit=basic.target
"""

# A Python that isn't the system's may look for its library where it was installed.
_PROGRAM = """\
#!/bin/sh
export LD_LIBRARY_PATH=/opt/python/lib
exec /opt/python/bin/python{version} -I -c '
import sys
sys.argv[0] = "{name}"
sys.path[:0] = ["/opt/vifd", "/opt/vifd/client", "/opt/site"]
from {module} import main
sys.exit(main())' "$@"
"""


@dataclass(frozen=True)
class Machine:
    """A running systemd."""

    pid: int

    def run(self, *command: str, check: bool = True, uid: int = 0) -> subprocess.CompletedProcess[str]:
        """Run a command inside; as another user, with the groups that it has there."""
        become = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--init-groups"] if uid else []
        enter = ["nsenter", f"--target={self.pid}", "--mount", "--pid", "--net", "--ipc", "--uts", "--cgroup"]
        done = subprocess.run([*enter, *become, *command], capture_output=True, text=True, check=False, timeout=60)
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}{self.log()}"
        return done

    def systemctl(self, *arguments: str) -> str:
        """Run systemctl inside."""
        return self.run("systemctl", *arguments).stdout.strip()

    def log(self) -> str:
        """What vifd has said so far."""
        return self.run("journalctl", "--no-pager", "--unit=vifd", check=False).stdout

    def wait_until(self, *command: str) -> None:
        """Repeat a command until it succeeds."""
        end = time.monotonic() + READY_SECONDS
        while self.run(*command, check=False).returncode != 0:
            assert time.monotonic() < end, f"not within {READY_SECONDS} s: {command}\n{self.log()}"
            time.sleep(0.1)


@contextlib.contextmanager
def booted(directory: Path) -> Iterator[Machine]:
    """Boot a systemd with vifd's units installed and not started.

    Args:
        directory: for what is copied into it.
    """
    files, base = directory / "files", directory / "base"
    base.mkdir()
    _install(files)
    environment = {
        **os.environ,
        "BASE": str(base),
        "ROOT": str(base / "root"),
        "FILES": str(files),
        "CHECKOUT": str(CHECKOUT),
        "PYTHON": sys.base_prefix,
        "SITE": str(next(Path(sys.prefix).glob("lib/python*/site-packages"))),
    }
    unshare = ["unshare", "--mount", "--pid", "--net", "--uts", "--ipc", "--cgroup", "--fork", "--kill-child", "sh", "-c", _BOOT]
    with _cgroup() as cgroup, (directory / "log").open("wb") as log:
        join = f'echo $$ > {cgroup}/cgroup.procs; exec "$@"'
        process = subprocess.Popen(
            ["sh", "-c", join, "sh", *unshare], env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL
        )
        try:
            machine = Machine(_init_of(process))
            machine.wait_until("systemctl", "is-active", "basic.target")
            yield machine
        finally:
            process.kill()
            process.wait()


def _install(files: Path) -> None:
    """Lay out what `make install` puts on a host, and a user who may ask."""
    units = files / "etc/systemd/system"
    for kind, folder in (("service", units), ("socket", units)):
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(CHECKOUT / f"systemd/vifd.{kind}", folder)
    for kind in ("sysusers", "tmpfiles"):
        (files / f"etc/{kind}.d").mkdir()
        shutil.copy(CHECKOUT / f"systemd/vifd.{kind}", files / f"etc/{kind}.d/vifd.conf")
    with (files / "etc/sysusers.d/vifd.conf").open("a") as sysusers:
        sysusers.write(f"u member {MEMBER_UID}\nm member vifd\n")
    for unit in ("systemd-udevd.service", "systemd-udevd-control.socket", "systemd-udevd-kernel.socket"):
        (units / unit).symlink_to("/dev/null")
    programs = files / "usr/bin"
    programs.mkdir(parents=True)
    for name, module in (("vifd", "vifd.__main__"), ("vifctl", "vifclient.cli")):
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        (programs / name).write_text(_PROGRAM.format(version=version, name=name, module=module))
        (programs / name).chmod(0o755)
    (files / "etc/vifd").mkdir()
    shutil.copy(CHECKOUT / "demo/vifd.toml", files / "etc/vifd/vifd.toml")


def _init_of(process: subprocess.Popen[bytes]) -> int:
    """Wait for the child of unshare: the namespace's init."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    end = time.monotonic() + READY_SECONDS
    while process.poll() is None and time.monotonic() < end:
        for child in children.read_text().split():
            if Path(f"/proc/{child}/comm").read_text().strip() == "systemd":
                return int(child)
        time.sleep(0.02)
    raise AssertionError("systemd did not start")


@contextlib.contextmanager
def _cgroup() -> Iterator[Path]:
    """Give a control group below which systemd may do as it likes."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    path = Path(next(mount[1] for mount in mounts if mount[2] == "cgroup2")) / f"vifd-test-{secrets.token_hex(4)}"
    path.mkdir()
    try:
        yield path
    finally:
        end = time.monotonic() + READY_SECONDS
        while "populated 1" in (path / "cgroup.events").read_text() and time.monotonic() < end:
            time.sleep(0.02)
        for group in sorted(path.rglob("*"), reverse=True):
            if group.is_dir():
                group.rmdir()
        path.rmdir()
