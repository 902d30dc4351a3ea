"""HTTP over a Unix socket, in which Cloud Hypervisor and Firecracker are spoken to. For asyncio: `asyncio.to_thread`."""

import http.client
import json
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

DEFAULT_TIMEOUT_S = 30.0


class RestError(Exception):
    """The hypervisor refused a request, or can't be spoken to.

    Attributes:
        status: The HTTP status of its answer. 0: there was none.
    """

    def __init__(self, message: str, *, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Request:
    """A request to a hypervisor.

    Attributes:
        method: "GET" or "PUT".
        path: Its path.
        body: What becomes its JSON. None: it has none.
    """

    method: str
    path: str
    body: Mapping[str, Any] | None = None


def send(socket_path: str, request: Request, *, fds: Sequence[int] = (), timeout_s: float = DEFAULT_TIMEOUT_S) -> Any:
    """Send a request, and wait for the answer.

    Args:
        socket_path: The hypervisor's API socket.
        request: The request.
        fds: Open files that go with it (SCM_RIGHTS), for Cloud Hypervisor. The caller closes them afterwards.
        timeout_s: How long it may take, in seconds.

    Returns:
        The answer's JSON. None: it has none.

    Raises:
        RestError: The hypervisor refused it, or can't be spoken to.
    """
    connection = _Connection(socket_path, fds, timeout_s)
    try:
        headers = {"Accept": "application/json", "Content-Type": "application/json"}
        connection.request(request.method, request.path, None if request.body is None else json.dumps(request.body), headers)
        response = connection.getresponse()
        answer = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise RestError(f"the hypervisor can't be spoken to on {socket_path}: {error}") from error
    finally:
        connection.close()
    if response.status >= http.client.BAD_REQUEST:
        raise RestError(f"the hypervisor refused {request.path}: {answer.decode(errors='replace')}", status=response.status)
    try:
        return json.loads(answer) if answer else None
    except ValueError as error:
        raise RestError(f"what answers on {socket_path} isn't the hypervisor: {answer[:80]!r}", status=response.status) from error


class _Connection(http.client.HTTPConnection):
    def __init__(self, socket_path: str, fds: Sequence[int], timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._socket_path = socket_path
        self._fds = list(fds)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._socket_path)

    def send(self, data: Any) -> None:
        """Send the head of the request, and the files with its first bytes; or the rest of it."""
        if self.sock is None:
            self.connect()
        fds, self._fds = self._fds, []
        sent = socket.send_fds(self.sock, [data], fds) if fds else 0
        self.sock.sendall(data[sent:])
