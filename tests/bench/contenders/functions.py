"""VFs that come and go while something else is measured: a process of its own, for its client must not slow that one down.

It reads "go" and "stop", and answers to each when it is so: the second with how many VFs it has requested.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tests.support.vfs import VFIO
from vifclient import aio
from vifclient.messages import RequestEndpointRequest

NETWORK = "fast"


def make_request() -> RequestEndpointRequest:
    """Ask for a VF with a new id."""
    return RequestEndpointRequest(endpoint_id=str(uuid.uuid4()), network=NETWORK, acceptable=VFIO)


class Traffic:
    """The process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    @contextmanager
    def running(self, made: list[int]) -> Iterator[None]:
        """Have VFs in flight for a block; how many were requested meanwhile is put into `made`."""
        self._ask("go")
        yield
        made.append(int(self._ask("stop")))

    def _ask(self, word: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(word, file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError("the process with VFs in flight has ended; its error stands above")
        return answer


@contextmanager
def traffic(socket: str, in_flight: int) -> Iterator[Traffic]:
    """Start it.

    Args:
        socket: vifd's.
        in_flight: how many VFs are requested or released at any time.
    """
    argv = [sys.executable, "-m", __name__, socket, str(in_flight)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Traffic(process)
        finally:
            process.kill()


async def _serve(socket: str, in_flight: int) -> None:
    loop = asyncio.get_running_loop()
    async with aio.Client(socket) as client:
        while await loop.run_in_executor(None, sys.stdin.readline):  # "go"
            stopped, begun = asyncio.Event(), asyncio.Event()
            counts = [0] * in_flight
            workers = [asyncio.create_task(_work(client, counts, number, stopped, begun)) for number in range(in_flight)]
            await begun.wait()
            print("going", flush=True)
            await loop.run_in_executor(None, sys.stdin.readline)  # "stop"
            stopped.set()
            await asyncio.gather(*workers)
            print(sum(counts), flush=True)


async def _work(client: aio.Client, counts: list[int], number: int, stopped: asyncio.Event, begun: asyncio.Event) -> None:
    while not stopped.is_set():
        request = make_request()
        await client.request_endpoint(request)
        counts[number] += 1
        begun.set()
        await client.release_endpoint(request.endpoint_id)


def main(arguments: Sequence[str]) -> None:
    """Run it."""
    socket, in_flight = arguments
    asyncio.run(_serve(socket, int(in_flight)))


if __name__ == "__main__":
    main(sys.argv[1:])
