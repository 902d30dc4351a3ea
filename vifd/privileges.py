"""What the process does while it is root, and how it stops being root."""

from __future__ import annotations

import ctypes
import grp
import os
import pwd
import resource
import stat
from pathlib import Path
from typing import NamedTuple

from vifd.config import DaemonConfig
from vifd.errors import ConfigError, StartError, Violation

_PR_SET_NO_NEW_PRIVS = 38  # linux/prctl.h
_OPEN_FILES = 1 << 16


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
        how = f'make it with "systemd-sysusers" or "useradd --system {config.user}", or name another'
        problems.append(Violation("daemon.user", f"this host has no user {config.user!r}; {how}"))
    elif user[0] == 0:
        problems.append(Violation("daemon.user", "must not be root: this process is the one that strangers talk to"))
    if group is None:
        how = f'make it with "systemd-sysusers" or "groupadd --system {config.socket_group}", or name another'
        problems.append(Violation("daemon.socket_group", f"this host has no group {config.socket_group!r}; {how}"))
    if problems or user is None or group is None:
        raise ConfigError(problems)
    return Identity(*user, group)


def _find_user(name: str) -> tuple[int, int] | None:
    try:
        entry = pwd.getpwuid(int(name)) if name.isdecimal() else pwd.getpwnam(name)
    except (KeyError, ValueError):  # ValueError: no name at all, like one with a NUL
        return (int(name), int(name)) if name.isdecimal() else None
    return entry.pw_uid, entry.pw_gid


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


def _give(path: Path, identity: Identity) -> None:
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
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise StartError(f"can't set no_new_privs: {os.strerror(ctypes.get_errno())}")
