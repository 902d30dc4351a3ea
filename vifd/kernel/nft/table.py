"""A table of nftables that is vifd's: opened, owned where the kernel can (Linux 6.9), and read."""

from __future__ import annotations

import errno
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from vifd.kernel.nft import wire
from vifd.kernel.nft.wire import NLM_F_CREATE, Family, Kind, Message, NftError, NftSocket, listed, nested, text

_OWNER, PERSIST = 2, 4  # NFT_TABLE_F_*; PERSIST since Linux 6.9
_NO_NFTABLES = {errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT, errno.EINVAL}
#: How long another owner of a table may take to end.
OWNER_PATIENCE_S = 5.0
_PAUSE_S = 0.02
_ELEMENTS_A_MESSAGE = 400  # a list's length has to fit in 16 bits


class Table(ABC):
    """A table. The kernel lets one that is owned be changed through the socket alone that owns it.

    Args:
        family: what its chains see.
        name: its name.
        owned: whether to own it where the kernel can; without, other programs may change it.
        shared: another table, to use its socket: so events tell of both that vifd caused them.
    """

    def __init__(self, family: Family, name: str, *, owned: bool, shared: Table | None = None) -> None:
        self._family, self._name, self._owned, self._is_shared = family, name, owned, shared is not None
        self._socket = NftSocket() if shared is None else shared.socket
        self._lock = threading.Lock() if shared is None else shared.lock
        self._flags = 0

    @abstractmethod
    def open(self) -> None:
        """Look what an earlier helper has left, and get ready.

        Raises:
            NftError: the kernel refuses; EOPNOTSUPP: it has no nf_tables, or not for this family.
        """

    @property
    def socket(self) -> NftSocket:
        """The socket that owns the table."""
        return self._socket

    @property
    def lock(self) -> threading.Lock:
        """What keeps the socket to one thread at a time."""
        return self._lock

    def close(self) -> None:
        """Close this process's end of the socket, if it is the table's own."""
        if not self._is_shared:
            self._socket.close()

    @property
    def port_id(self) -> int:
        """The number by which events tell that this caused them."""
        return self._socket.port_id

    def _find_table(self) -> dict[int, bytes] | None:
        return self._socket.ask(Message(Kind.GETTABLE, self._family, text(1, self._name)))

    def _own(self, messages: Callable[[int], Sequence[Message]]) -> None:
        """Carry out, in one transaction, what makes the table or takes it over: as its owner where that may be.

        Args:
            messages: gives them for the table's flags.

        Raises:
            NftError: the kernel refuses; nothing has changed.
        """
        for flags in (_OWNER | PERSIST, 0) if self._owned else (0,):
            try:
                self._socket.commit(messages(flags))
            except NftError as error:
                if flags == 0 or error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                    raise
            else:
                self._flags = flags
                return

    def _deletion(self) -> Message:
        return Message(Kind.DELTABLE, self._family, text(1, self._name))

    def _read_set(self, name: str) -> list[bytes]:
        """Give the elements of a set as the kernel packs them; none where another vifd's table has no such set."""
        try:
            answers = self._socket.dump(Message(Kind.GETSETELEM, self._family, text(1, self._name) + text(2, name)))
        except NftError as error:
            if error.errno == errno.ENOENT:
                return []
            raise
        return [item for answer in answers for item in wire.list_of(answer.get(3, b""))]

    def _elements(self, kind: Kind, of: str, packed: Sequence[bytes]) -> Iterator[Message]:
        """Give what adds elements to a set or deletes them, as many at once as an attribute can hold."""
        for start in range(0, len(packed), _ELEMENTS_A_MESSAGE):
            elements = nested(3, listed(packed[start : start + _ELEMENTS_A_MESSAGE]))
            yield Message(kind, self._family, text(1, self._name) + text(2, of) + elements, NLM_F_CREATE)


T = TypeVar("T", bound=Table)


def open_table(make: Callable[[], T]) -> T | None:
    """Make and open a table; None: the kernel has no nftables, or not for its family.

    One that another process owns is waited for, some seconds: that may be the helper of a vifd that has just ended.

    Raises:
        OSError: the kernel has them and refuses.
    """
    end_s = time.monotonic() + OWNER_PATIENCE_S
    while True:
        table: T | None = None
        try:
            table = make()
            table.open()
        except OSError as error:
            if table is not None:
                table.close()
            if error.errno in _NO_NFTABLES:
                return None
            if error.errno != errno.EPERM or time.monotonic() >= end_s:
                raise
            time.sleep(_PAUSE_S)
        else:
            return table
