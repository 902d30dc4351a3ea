"""The command run: an endpoint that lives as long as a command."""

import os
import re
import signal
import subprocess
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import Any, Self

import click

from vifclient import errors
from vifclient.cli.command import Command, Failure, connect
from vifclient.cli.settings import Settings
from vifclient.cli.spec import Spec, spec_options
from vifclient.client import Client
from vifclient.messages import Endpoint, RequestEndpointRequest

NOT_STARTED_EXIT = 125  # as env(1) and timeout(1): not the command's own failure
NOT_EXECUTABLE_EXIT = 126
NOT_FOUND_EXIT = 127
SIGNAL_EXIT = 128

_PLACEHOLDER = re.compile(r"\{(fds|fd|mac|ifname|mtu|id)\}")


@click.command(
    "run",
    cls=Command,
    examples=[
        "vifctl run default -- qemu-system-x86_64 -m 512 -kernel vmlinuz -initrd initrd.img -nographic -append console=ttyS0 \\",
        "    -netdev tap,id=n0,fds={fds} -device virtio-net-pci,netdev=n0,mac={mac}",
    ],
)
@spec_options
@click.argument("command", metavar="-- COMMAND...", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def run_command(settings: Settings, /, command: tuple[str, ...], **options: Any) -> int:
    """Run COMMAND with a tap or macvtap on NETWORK of its own, and release it when COMMAND ends.

    COMMAND inherits the device's open queues, so that it needs no rights on /dev/net/tun. In its arguments {fds} becomes their
    numbers with colons between them, {fd} the first, and {mac}, {ifname}, {mtu}, {id} what they say; the environment has them
    as VIF_FDS, VIF_MAC, VIF_IFNAME, VIF_MTU and VIF_ENDPOINT_ID. SIGTERM, SIGINT, SIGHUP and SIGQUIT are passed on to COMMAND,
    which has to stay in the foreground.
    """
    if not command:
        raise click.UsageError("COMMAND is missing. Write it after two dashes.", click.get_current_context())
    spec = Spec.take(options)
    request = spec.to_request(["macvtap"] if spec.macvtap_mode else ["tap", "macvtap"])
    try:
        with connect(settings) as client:
            return _run(client, request, command)
    except errors.VifError as error:
        raise NotStarted(error, as_json=settings.json) from error


class NotStarted(Failure):
    """vifd refused or can't be reached, so that the command was not started."""

    exit_code = NOT_STARTED_EXIT


class SignalledError(Exception):
    """A signal came before the command was started."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Signals:
    """Passes signals on to the command. Before it runs they stop vifctl, after it they come too late."""

    NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    OF_TERMINAL = (signal.SIGINT, signal.SIGQUIT)

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._starting = False
        self._pending: list[int] = []
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in self.NUMBERS:
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def run(self, argv: Sequence[str], fds: Sequence[int], environment: dict[str, str]) -> subprocess.Popen[bytes]:
        """Start the command; from now on signals are its."""
        self._starting = True  # else a signal between fork and assignment would leave the command behind
        self._child = subprocess.Popen(argv, pass_fds=fds, env=environment)  # noqa: S603  (it is what the user asks for)
        for number in self._pending:
            self._child.send_signal(number)
        return self._child

    def ignore(self) -> None:
        """Let signals no longer stop vifctl: it tidies up, which is short."""
        self._starting = True

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self._child is not None:
            # A Ctrl-C has reached the command already, if both are in the terminal's foreground: twice would be too much.
            if number not in self.OF_TERMINAL or not _in_foreground():
                self._child.send_signal(number)
        elif self._starting:
            self._pending.append(number)
        else:
            raise SignalledError(number)


def _run(client: Client, request: RequestEndpointRequest, command: Sequence[str]) -> int:
    with Signals() as signals:
        try:
            endpoint = client.request_endpoint(request).endpoint
            status = _attach(client, endpoint, command, signals)
        except SignalledError as stop:
            status = SIGNAL_EXIT + stop.number
        finally:
            # Also when the request failed: it may have made the endpoint before its answer was lost.
            signals.ignore()
            _release(client, request.endpoint_id)
        return status


def _attach(client: Client, endpoint: Endpoint, command: Sequence[str], signals: Signals) -> int:
    with client.acquire_fds(endpoint.endpoint_id) as queues:
        values = _values(endpoint, queues.fds)
        argv = [_PLACEHOLDER.sub(lambda match: values[match[1]], argument) for argument in command]
        try:
            child = signals.run(argv, queues.fds, {**os.environ, **_environment(values)})
        except OSError as error:
            click.echo(f"vifctl: {argv[0]} can't be run: {error.strerror}", err=True)
            return NOT_FOUND_EXIT if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE_EXIT
    # vifctl's own copies are closed: the tap has carrier for as long as the command has it open, not longer.
    status = child.wait()
    return status if status >= 0 else SIGNAL_EXIT - status


def _values(endpoint: Endpoint, fds: Sequence[int]) -> dict[str, str]:
    return {
        "fds": ":".join(map(str, fds)),
        "fd": str(fds[0]),
        "mac": endpoint.port.mac,
        "ifname": getattr(endpoint, endpoint.WhichOneof("location") or "tap").ifname,
        "mtu": str(endpoint.port.mtu_bytes),
        "id": endpoint.endpoint_id,
    }


def _environment(values: dict[str, str]) -> dict[str, str]:
    names = {"VIF_FDS": "fds", "VIF_MAC": "mac", "VIF_IFNAME": "ifname", "VIF_MTU": "mtu", "VIF_ENDPOINT_ID": "id"}
    return {variable: values[name] for variable, name in names.items()}


def _release(client: Client, endpoint_id: str) -> None:
    try:
        client.release_endpoint(endpoint_id)
    except errors.VifError as error:
        # The command's own status says more than this does.
        click.echo(f"vifctl: the endpoint {endpoint_id} is left behind: {error.message}", err=True)
        click.echo(f"  Take it down with: vifctl release {endpoint_id}", err=True)


def _in_foreground() -> bool:
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:  # there is no terminal, so the signal came from a process
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)
