"""What the process does while it is root, and how it stops being root."""

from __future__ import annotations

import ctypes
import grp
import os
import pwd
import resource
import signal
import stat
from collections.abc import Iterable
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

from vifd.config import DaemonConfig
from vifd.errors import ConfigError, StartError, Violation

# linux/prctl.h
_PR_SET_PDEATHSIG, _PR_SET_KEEPCAPS, _PR_CAPBSET_READ, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 8, 23, 24, 38
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE = 47, 2
_CAPABILITY_VERSION_3 = 0x20080522  # linux/capability.h
_CAPABILITIES = 64
_OPEN_FILES = 1 << 16


class Capability(IntEnum):
    """What of root's power a process keeps (linux/capability.h)."""

    KILL = 5
    SETGID = 6
    SETUID = 7
    NET_BIND_SERVICE = 10
    NET_ADMIN = 12
    NET_RAW = 13


class User(NamedTuple):
    """A user, and the group that it is in first of all."""

    uid: int
    gid: int


class Identity(NamedTuple):
    """Who the unprivileged process becomes, and whose group may connect."""

    uid: int
    gid: int
    socket_gid: int


def resolve(config: DaemonConfig) -> Identity:
    """Look the configuration's user and group up.

    Raises:
        ConfigError: this host has no such user or group, or the user is root.
    """
    problems = []
    user, group = _find_user(config.user), _find_group(config.socket_group)
    if user is None:
        problems.append(missing_user("daemon.user", config.user))
    elif user[0] == 0:
        problems.append(Violation("daemon.user", "must not be root: this process is the one that strangers talk to"))
    if group is None:
        how = f'make it with "systemd-sysusers" or "groupadd --system {config.socket_group}", or name another'
        problems.append(Violation("daemon.socket_group", f"this host has no group {config.socket_group!r}; {how}"))
    if problems or user is None or group is None:
        raise ConfigError(problems)
    return Identity(*user, group)


def missing_user(key: str, name: str) -> Violation:
    """Say that a user of the configuration isn't there."""
    how = f'make it with "systemd-sysusers" or "useradd --system {name}", or name another'
    return Violation(key, f"this host has no user {name!r}; {how}")


def find_dhcp_user(config: DaemonConfig) -> User | None:
    """Look up whom DHCP servers run as; None: this host has no such user.

    Raises:
        ConfigError: it is root, or vifd's own user, whose files it could change then.
    """
    found = _find_user(config.dhcp_user)
    if found is None:
        return None
    if found.uid == 0:
        raise ConfigError([Violation("daemon.dhcp_user", "must not be root: it answers what virtual machines send")])
    if found == _find_user(config.user):
        raise ConfigError([Violation("daemon.dhcp_user", "is daemon.user already; it takes a user of its own")])
    return found


def _find_user(name: str) -> User | None:
    try:
        entry = pwd.getpwuid(int(name)) if name.isdecimal() else pwd.getpwnam(name)
    except (KeyError, ValueError):  # ValueError: no name at all, like one with a NUL
        return User(int(name), int(name)) if name.isdecimal() else None
    return User(entry.pw_uid, entry.pw_gid)


def _find_group(name: str) -> int | None:
    try:
        return int(name) if name.isdecimal() else grp.getgrnam(name).gr_gid
    except (KeyError, ValueError):
        return None


def make_directory(path: Path, identity: Identity | None) -> None:
    """Make a directory that only vifd's user can enter, and nobody else owned before.

    Raises:
        StartError: it is there and somebody else's, or can't be made.
    """
    uid = os.geteuid() if identity is None else identity.uid
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.lstat()
        if found.st_uid not in (0, uid):
            raise StartError(
                f"{path} belongs to uid {found.st_uid}; vifd wants it for uid {uid} alone: move it away, or chown it"
            )
        if stat.S_IMODE(found.st_mode) != 0o700:
            path.chmod(0o700)
        # One that is right already is left alone: to look into it, or to give it away again, would take capabilities.
        if identity is not None and found.st_uid != uid:
            _give(path, identity)
    except OSError as error:
        raise StartError(f"can't make the directory {path}: {error.strerror}") from error


def make_shared_directory(path: Path, uid: int, gid: int, mode: int) -> None:
    """Make a directory that one user writes and a group reads, below one that only root writes.

    Raises:
        StartError: it can't be made.
    """
    try:
        path.mkdir(mode=mode, exist_ok=True)
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode):
            raise StartError(f"{path} is there and is no directory; move it away")
        # As in make_directory: one that is right already is left alone. Modes are root's to change, so that comes first.
        if stat.S_IMODE(found.st_mode) != mode:
            path.chmod(mode)
        if (found.st_uid, found.st_gid) != (uid, gid):
            _give(path, User(uid, gid))
    except OSError as error:
        raise StartError(f"can't make the directory {path}: {error.strerror}") from error


def _give(path: Path, identity: Identity | User) -> None:
    """Give a directory to the user, with the files that an earlier run of another user's left in it."""
    for file in path.iterdir():
        if not file.is_dir():
            os.chown(file, identity.uid, identity.gid, follow_symlinks=False)
    os.chown(path, identity.uid, identity.gid, follow_symlinks=False)


def check_root_owned(path: Path) -> None:
    """Check that nobody but root decides what the configuration says, for the privileged helper believes it.

    Raises:
        ConfigError: somebody else can write it.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise ConfigError([Violation(str(path), f"can't be read: {error.strerror}")]) from error
    if found.st_uid != 0 or found.st_mode & 0o022:
        raise ConfigError([Violation(str(path), "has to belong to root and be writable by root alone: chown root, chmod go-w")])


def raise_file_limit() -> None:
    """Allow as many descriptors as the hard limit does, within reason: a connection takes four."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def drop(identity: Identity) -> None:
    """Become the user, for good: no group, no capability, and no way to gain any (capabilities(7), prctl(2)).

    Raises:
        StartError: the kernel refuses; the process must not go on then.
    """
    try:
        os.setgroups([])
        os.setresgid(identity.gid, identity.gid, identity.gid)
        os.setresuid(identity.uid, identity.uid, identity.uid)
    except OSError as error:
        raise StartError(f"can't become uid {identity.uid}: {error.strerror}") from error
    refuse_new()


def refuse_new() -> None:
    """Let no program that this process may ever start gain privileges (prctl(2), PR_SET_NO_NEW_PRIVS).

    Raises:
        StartError: the kernel refuses.
    """
    _prctl("set no_new_privs", _PR_SET_NO_NEW_PRIVS, 1)


def keep(capabilities: Iterable[Capability]) -> None:
    """Stay root with some capabilities and no others, for good.

    Raises:
        StartError: the kernel refuses.
    """
    kept = frozenset(capabilities)
    libc = ctypes.CDLL(None, use_errno=True)
    for number in range(_CAPABILITIES):
        # Without CAP_SETPCAP, as under the unit, the bounding set is the unit's.
        if number not in kept and libc.prctl(_PR_CAPBSET_READ, number, 0, 0, 0) == 1:
            libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0)
    _set_capabilities(kept, inheritable=frozenset())
    refuse_new()


def become(user: User, capabilities: Iterable[Capability], parent: int) -> None:
    """Become a user for the program that this process executes next, which keeps some capabilities (capabilities(7), ambient).

    The program is killed when the process that started it ends, which needs CAP_KILL for that.

    Args:
        user: whom.
        capabilities: which.
        parent: the pid of the process that started it.

    Raises:
        StartError: the kernel refuses; the program must not be executed then.
    """
    kept = frozenset(capabilities)
    _prctl("keep capabilities", _PR_SET_KEEPCAPS, 1)
    os.setgroups([])
    os.setresgid(user.gid, user.gid, user.gid)
    os.setresuid(user.uid, user.uid, user.uid)
    _set_capabilities(kept, inheritable=kept)
    for capability in kept:
        _prctl(f"raise {capability.name}", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, capability)
    _prctl("set a death signal", _PR_SET_PDEATHSIG, signal.SIGKILL)  # last: a change of user takes it back
    if os.getppid() != parent:
        raise StartError("the process that wanted a program has ended")


def _set_capabilities(capabilities: frozenset[Capability], inheritable: frozenset[Capability]) -> None:
    """Set effective and permitted capabilities, and the inheritable ones (capset(2))."""
    low, low_inheritable = (sum(1 << number for number in numbers) for numbers in (capabilities, inheritable))
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)(low, low, low_inheritable, 0, 0, 0)
    if ctypes.CDLL(None, use_errno=True).capset(header, data) != 0:
        raise StartError(f"can't set capabilities: {os.strerror(ctypes.get_errno())}")


def _prctl(what: str, *arguments: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(*(ctypes.c_ulong(argument) for argument in (*arguments, 0, 0, 0, 0)[:5])) != 0:
        raise StartError(f"can't {what}: {os.strerror(ctypes.get_errno())}")
