"""The character devices through which macvtaps are opened, made privately for their owners.

The kernel's own `/dev/tapN` is named by interface index, and `/dev` is one for all network namespaces: with equal indexes it is
another namespace's device. So vifd takes the device number from sysfs and makes a node of its own. A node is named by its
minor number, which no two macvtaps of a host have: a node that was left behind by a device that is gone makes way when the
kernel gives that number to the next one, whichever vifd made either.

The kernel's node is given to the owner too, where it is the device's: libvirt opens no other (virNetDevMacVLanTapOpen in its
src/util/virnetdevmacvlan.c). The kernel takes it away with the device.

`/run` can't hold nodes: systemd mounts it `nodev`.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import secrets
import stat
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

_PREFIX = "macvtap"
_GROUPS = "group"
_KERNELS = Path("/dev")  # a devtmpfs, or without one just a directory
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR, _IFF_MULTI_QUEUE = 0x0002, 0x1000, 0x4000, 0x0100
_TUNSETIFF, _TUNGETIFF = 0x400454CA, 0x800454D2
_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432  # asm-generic/unistd.h
_FSOPEN_CLOEXEC, _FSMOUNT_CLOEXEC, _FSCONFIG_CMD_CREATE = 1, 1, 6  # linux/mount.h
_MOUNT_ATTR_RDONLY_NOSUID_NODEV_NOEXEC = 1 | 2 | 4 | 8


class NodesError(Exception):
    """No device node can be made here; its text says what the administrator has to do."""


class Nodes:
    """The device nodes in a directory. They are shared by all that run on a host with the same directory.

    Args:
        path: the directory.
        directory: it, open.
        sysfs: a sysfs, open, that shows this process's network namespace.
    """

    def __init__(self, path: Path, directory: int, sysfs: int) -> None:
        self._path, self._directory, self._sysfs = path, directory, sysfs
        self._one_thread = threading.Lock()

    @classmethod
    def prepare(cls, path: Path) -> Nodes:
        """Make the directory if it is missing. Call it as root, with what capabilities there are.

        Raises:
            NodesError: it is somebody else's, no directory, or can hold no usable nodes.
        """
        try:
            directory = _open_own_directory(path)
        except OSError as error:
            raise NodesError(f"daemon.device_dir: {path} can't be used for device nodes: {error.strerror}") from error
        try:
            return cls(path, directory, _open_sysfs())
        except OSError as error:
            os.close(directory)
            raise NodesError(f"can't open sysfs: {error.strerror}") from error

    def close(self) -> None:
        """Close the directories."""
        os.close(self._directory)
        os.close(self._sysfs)

    def shows(self, ifname: str, ifindex: int, mac: str) -> bool:
        """Tell whether sysfs shows the network namespace in which a device has this index and MAC.

        A sysfs shows that of the process that mounted it, whoever reads it (fs/sysfs/mount.c, sysfs_init_fs_context).
        """
        try:
            found = self._read(f"class/net/{ifname}/ifindex"), self._read(f"class/net/{ifname}/address")
        except OSError:
            return False
        return found == (str(ifindex), mac)

    def number(self, ifname: str, ifindex: int) -> int:
        """Give the device number of a macvtap.

        Raises:
            OSError: there is no such macvtap.
        """
        major, minor = self._read(f"class/net/{ifname}/macvtap/tap{ifindex}/dev").split(":")
        return os.makedev(int(major), int(minor))

    def ensure(self, number: int, uid: int, gid: int | None) -> str:
        """Make the node of a device that exists, or put it in the place of another one.

        It is readable and writable by its owner alone, and so is the kernel's. Where a group is wanted as well, it lies in a
        directory that only that group may enter, and the kernel's is root's.

        Args:
            number: the device number.
            uid: its owner.
            gid: the group that the opener must be in as well; None: no matter.

        Returns:
            Its path.

        Raises:
            OSError: it can't be made.
        """
        name = _name(number)
        with self._alone(), self._open_directory(gid) as (directory, path):
            found = _lstat(name, directory)
            if found is None or not _is_node(found, number) or (found.st_uid, found.st_mode & 0o777) != (uid, 0o600):
                self._put(name, directory, number, uid)
            for other in self._directories():
                if other != path:
                    _discard(name, path=other)
        self._give_kernels(number, uid, gid)
        return str(path / name)

    def find(self, number: int) -> str:
        """Give the path of a device's node; empty where it has none."""
        name = _name(number)
        for directory in self._directories():
            found = _lstat(str(directory / name))
            if found is not None and _is_node(found, number):
                return str(directory / name)
        return ""

    def is_owned(self, number: int, uid: int, gid: int | None) -> bool:
        """Tell whether a device has the node that `ensure` makes, and none beside it that is somebody else's."""
        directory = self._path if gid is None else self._path / _GROUPS / str(gid)
        path = self.find(number)
        found = _lstat(path) if path else None
        if found is None or Path(path).parent != directory or (found.st_uid, found.st_mode & 0o777) != (uid, 0o600):
            return False
        with self._open_kernels(number) as kernels:
            return kernels is None or os.fstat(kernels).st_uid == _kernels_owner(uid, gid)

    def discard(self, number: int) -> None:
        """Delete the node of a device, which must still be there: nobody else has its number then."""
        with self._alone():
            for directory in self._directories():
                _discard(_name(number), path=directory)

    def discard_stale(self) -> None:
        """Delete the nodes of devices that are gone, and what a helper that died has left half made."""
        with self._alone():
            for directory in self._directories():
                for path in directory.iterdir():
                    found = _lstat(str(path))
                    if found is None or stat.S_ISDIR(found.st_mode):
                        continue
                    if path.name.startswith(".") or (path.name.startswith(_PREFIX) and not self._is_there(found.st_rdev)):
                        path.unlink()

    def open_queue(self, ifname: str, ifindex: int, *, multi_queue: bool, vnet_hdr: bool) -> int:
        """Open a queue of a macvtap, by a node of root's own that nobody else sees: the owner's is closed to a root without
        CAP_DAC_OVERRIDE.

        Raises:
            OSError: ENODEV where there is no such macvtap (any more), or what else the kernel says.
        """
        number, name = self.number(ifname, ifindex), f".open-{secrets.token_hex(8)}"
        with self._alone():
            os.mknod(name, stat.S_IFCHR | 0o600, number, dir_fd=self._directory)
            try:
                fd = os.open(name, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=self._directory)
            finally:
                os.unlink(name, dir_fd=self._directory)
        try:
            flags = _IFF_TAP | _IFF_NO_PI | (_IFF_MULTI_QUEUE if multi_queue else 0) | (_IFF_VNET_HDR if vnet_hdr else 0)
            fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", b"", flags))
            self._check_same(fd, number, ifname, ifindex)
        except OSError:
            os.close(fd)
            raise
        return fd

    def _check_same(self, fd: int, number: int, ifname: str, ifindex: int) -> None:
        """Check that a descriptor is that of the device meant: it may have gone, and its number be another's, meanwhile."""
        opened = struct.unpack("16sH22x", fcntl.ioctl(fd, _TUNGETIFF, bytes(40)))[0].rstrip(b"\0").decode()
        if opened != ifname or os.fstat(fd).st_rdev != number or self.number(ifname, ifindex) != number:
            raise OSError(19, f"macvtap {ifname} went away")

    def _put(self, name: str, directory: int, number: int, uid: int) -> None:
        """Make a node under another name and move it into place, so that no one ever opens one that isn't its owner's."""
        new = f".{name}"
        _discard(new, directory=directory)
        os.mknod(new, stat.S_IFCHR | 0o600, number, dir_fd=directory)
        try:
            os.chown(new, uid, -1, dir_fd=directory, follow_symlinks=False)
            if os.stat(new, dir_fd=directory, follow_symlinks=False).st_rdev != number:
                raise OSError(19, f"the node of {name} is another device's")
            os.rename(new, name, src_dir_fd=directory, dst_dir_fd=directory)
        except OSError:
            _discard(new, directory=directory)
            raise

    def _give_kernels(self, number: int, uid: int, gid: int | None) -> None:
        """Give the kernel's node of a device to its owner. Its mode stays the kernel's, 0600, or that of a rule of udev's."""
        owner = _kernels_owner(uid, gid)
        with self._open_kernels(number) as kernels:
            if kernels is not None and os.fstat(kernels).st_uid != owner:
                os.chown(f"/proc/self/fd/{kernels}", owner, -1)  # this very node, whatever has its name by now

    @contextlib.contextmanager
    def _open_kernels(self, number: int) -> Iterator[int | None]:
        """Open the kernel's node of a device as a place alone (O_PATH); None where there is none, or another device's."""
        name = Path(os.readlink(f"dev/char/{os.major(number)}:{os.minor(number)}", dir_fd=self._sysfs)).name
        with contextlib.ExitStack() as stack:
            node = None
            with contextlib.suppress(FileNotFoundError):
                node = os.open(_KERNELS / name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
                stack.callback(os.close, node)
            yield node if node is not None and _is_node(os.fstat(node), number) else None

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Be the only one that changes nodes: among the threads of this process, and among all vifds of the directory."""
        with self._one_thread:
            fcntl.flock(self._directory, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(self._directory, fcntl.LOCK_UN)

    @contextlib.contextmanager
    def _open_directory(self, gid: int | None) -> Iterator[tuple[int, Path]]:
        """Give the directory for nodes with a group, or for those without."""
        if gid is None:
            yield self._directory, self._path
            return
        path = self._path / _GROUPS / str(gid)
        with contextlib.suppress(FileExistsError):
            path.mkdir(0o700)
        directory = os.open(path, _OPEN_DIRECTORY)
        try:
            os.fchown(directory, -1, gid)
            os.fchmod(directory, 0o710)
            yield directory, path
        finally:
            os.close(directory)

    def _directories(self) -> list[Path]:
        return [self._path, *(self._path / _GROUPS).iterdir()]

    def _is_there(self, number: int) -> bool:
        """Tell whether a device has this number, in whatever network namespace: this part of sysfs shows them all."""
        return _lstat(f"dev/char/{os.major(number)}:{os.minor(number)}", self._sysfs) is not None

    def _read(self, path: str) -> str:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._sysfs)
        try:
            return os.read(fd, 64).decode().strip()
        finally:
            os.close(fd)


def _open_own_directory(path: Path) -> int:
    """Make a directory that everybody may pass through and only root may change or list, and open it."""
    for one in (path, path / _GROUPS):
        one.mkdir(mode=0o711, parents=True, exist_ok=True)
        found = one.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            raise NodesError(f"daemon.device_dir: {one} has to be a directory of root's own; move it away, or chown it")
        if stat.S_IMODE(found.st_mode) != 0o711:
            one.chmod(0o711)
    if os.statvfs(path).f_flag & os.ST_NODEV:
        raise NodesError(f"daemon.device_dir: {path} is on a file system that is mounted nodev; name a directory on another one")
    return os.open(path, _OPEN_DIRECTORY)


def _open_sysfs() -> int:
    """Open a sysfs of this process's network namespace: one of its own, in no place, where it may mount; else the host's."""
    libc = ctypes.CDLL(None, use_errno=True)
    context = libc.syscall(_FSOPEN, b"sysfs", _FSOPEN_CLOEXEC)
    if context >= 0:
        try:
            if libc.syscall(_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0) == 0:
                mount: int = libc.syscall(_FSMOUNT, context, _FSMOUNT_CLOEXEC, _MOUNT_ATTR_RDONLY_NOSUID_NODEV_NOEXEC)
                if mount >= 0:
                    return mount
        finally:
            os.close(context)
    return os.open("/sys", _OPEN_DIRECTORY)


def _name(number: int) -> str:
    return f"{_PREFIX}{os.minor(number)}"


def _kernels_owner(uid: int, gid: int | None) -> int:
    """Say whose the kernel's node is: it knows no owner who has to be in a group as well."""
    return uid if gid is None else 0


def _is_node(found: os.stat_result, number: int) -> bool:
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == number


def _lstat(path: str, directory: int | None = None) -> os.stat_result | None:
    try:
        return os.stat(path, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _discard(name: str, *, directory: int | None = None, path: Path | None = None) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name if path is None else str(path / name), dir_fd=directory)
