"""A front process that somebody else has taken over: it forks the helper as vifd does, and sends it whatever it is told.

`tests.functional.test_helper` runs it: owned_front.py NETNS. On stdin and stdout are pickles: in comes an entry point's name with
arguments, or bytes for the helper's channel as they are; out goes what the helper answers, None where it is gone or wasn't asked.
At its end it waits for the helper's.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import sys
from pathlib import Path
from typing import Any

from oslo_privsep import comm

from tests.support.patience import patient
from vifd.kernel import helper, netns
from vifd.kernel.authority import Authority, BridgeGrant

AUTHORITY = {
    "blue": BridgeGrant("br-blue"),
    "red": BridgeGrant("br-red", mtu_bytes=9000),
    "outside": BridgeGrant("br-outside", uplink="eth0"),
}


def load() -> tuple[str, Authority]:
    """Give what the configuration lets the helper touch."""
    return "", AUTHORITY


def main() -> None:
    """Start the helper, then do what the pipe says."""
    netns.enter(sys.argv[1])
    channels = helper.start(load, Path("/nonexistent"))
    tell("ready")
    channel: Any = helper.context.channel
    while (wanted := receive()) is not None:
        try:
            tell(ask(channel, wanted))
        except OSError:
            tell(None)
    with contextlib.suppress(OSError):
        channel.writer.close()
    os.read(channels.lifeline, 1)


def receive() -> Any:
    """Read what is to be sent; None: nothing more."""
    try:
        return pickle.load(sys.stdin.buffer)
    except EOFError:
        return None


def ask(channel: Any, wanted: Any) -> Any:
    """Send one thing and give the answer."""
    if isinstance(wanted, bytes):
        return channel.writer.writesock.sendall(wanted)
    name, arguments = wanted
    return channel.send_recv((comm.Message.CALL.value, name, arguments, {}), timeout=patient(20))


def tell(answer: Any) -> None:
    """Write one answer."""
    pickle.dump(answer, sys.stdout.buffer)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
