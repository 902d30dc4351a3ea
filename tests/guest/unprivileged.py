"""Start a program as an ordinary user, in a mount namespace of its own.

The checkout or the Python that runs it may lie in a home directory that only its owner may enter; what the program needs is then
made reachable in the private mount namespace, at the same path, and nothing changes for anybody else.

This file is also the program that `unshare` starts, so it needs nothing but the standard library.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import pwd
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
TUN = Path("/dev/net/tun")
_CLONE_NEWNS = 0x20000  # linux/sched.h
_TUN_DEVICE = os.makedev(10, 200)  # the kernel's Documentation/admin-guide/devices.txt


@dataclass(frozen=True)
class User:
    """Who the program runs as."""

    uid: int
    gid: int


def command(program: Sequence[str], *, user: User | None, open_tun: bool = False) -> list[str]:
    """Say what root has to run so that `program` runs as `user`.

    Args:
        program: The program and its arguments.
        user: Who it runs as, without capabilities and with the groups that the user has by /etc/group; None keeps root.
        open_tun: Whether it sees a /dev/net/tun that everybody may open, as udev makes it.
    """
    options = [] if user is None else ["--uid", str(user.uid), "--gid", str(user.gid)]
    options += ["--open-tun"] if open_tun else []
    return ["unshare", "--mount", "--propagation", "private", sys.executable, "-I", __file__, *options, "--", *program]


def be_reachable() -> None:
    """Let ordinary users that this process starts reach the checkout and the Python, whoever may enter the directories above.

    Call it as root. Where somebody may not enter one, the process gets a mount namespace of its own, in which nothing else is
    below that directory.
    """
    if all(_find_closed_ancestor(path.resolve()) is None for path in _needed()):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS) != 0:
        raise OSError(ctypes.get_errno(), "can't have a mount namespace")
    _mount("--make-rprivate", "/")
    _make_reachable(_needed())


def main() -> None:
    """Prepare the mount namespace that `unshare` made, then become the program."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--uid", type=int)
    parser.add_argument("--gid", type=int)
    parser.add_argument("--open-tun", action="store_true")
    parser.add_argument("program", nargs="+")
    arguments = parser.parse_args()
    _make_reachable(_needed())
    if arguments.open_tun:
        _bind_open_tun()
    os.chdir("/")
    drop = [] if arguments.uid is None else _drop_privileges(arguments.uid, arguments.gid)
    # the program ends with whoever started it, also when that one is killed
    os.execvp("setpriv", ["setpriv", "--pdeathsig", "TERM", *drop, *arguments.program])


def _needed() -> list[Path]:
    return [CHECKOUT, Path(sys.prefix), Path(sys.base_prefix)]


def _drop_privileges(uid: int, gid: int) -> list[str]:
    os.environ["HOME"] = "/nonexistent"
    identity = ["--reuid", str(uid), "--regid", str(gid), "--init-groups" if _is_known(uid) else "--clear-groups"]
    return [*identity, "--no-new-privs", "--inh-caps=-all", "--bounding-set=-all"]


def _is_known(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def _make_reachable(paths: Iterable[Path]) -> None:
    """Put an empty directory over each one that others may not enter, and in it what lies at the paths."""
    hidden: dict[Path, list[tuple[Path, int]]] = {}
    for path in {path.resolve() for path in paths}:
        closed = _find_closed_ancestor(path)
        if closed is not None:
            # opened before anything covers it
            hidden.setdefault(closed, []).append((path, os.open(path, os.O_PATH)))
    for closed, targets in hidden.items():
        _mount("-t", "tmpfs", "-o", "mode=0755", "tmpfs", str(closed))
        # parents first: a child that lies in one is then already there
        for path, descriptor in sorted(targets):
            path.mkdir(parents=True, exist_ok=True)
            _mount("--no-canonicalize", "--bind", f"/proc/{os.getpid()}/fd/{descriptor}", str(path))
            os.close(descriptor)


def _find_closed_ancestor(path: Path) -> Path | None:
    """Find the outermost directory on the way to `path` that others may not enter."""
    for ancestor in reversed(path.parents):
        if not ancestor.stat().st_mode & stat.S_IXOTH:
            return ancestor
    return None


def _bind_open_tun() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        _mount("-t", "tmpfs", "tmpfs", scratch)
        node = Path(scratch, "tun")
        os.mknod(node, stat.S_IFCHR | 0o666, _TUN_DEVICE)
        node.chmod(0o666)  # whatever the umask
        _mount("--bind", str(node), str(TUN))
        subprocess.run(["umount", "--lazy", scratch], check=True)


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


if __name__ == "__main__":
    main()
