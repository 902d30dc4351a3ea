"""The command run: an endpoint that lives as long as a command."""

import os
import re
import signal
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from vifclient import errors
from vifclient.cli.command import Command, Failure, connect
from vifclient.cli.settings import Settings
from vifclient.cli.spec import Spec, spec_options
from vifclient.client import Client
from vifclient.messages import Endpoint, Lifetime, ProcessLifetime, RequestEndpointRequest

NOT_STARTED_EXIT = 125  # as env(1) and timeout(1): not the command's own failure
NOT_EXECUTABLE_EXIT = 126
NOT_FOUND_EXIT = 127

_PLACEHOLDER = re.compile(r"\{(fds|fd|mac|ifname|mtu|id)\}")
_IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)


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
    """Run COMMAND with a tap or macvtap on NETWORK of its own. vifd releases it when COMMAND ends, in whatever way.

    COMMAND inherits the device's open queues, so that it needs no rights on /dev/net/tun. In its arguments {fds} becomes their
    numbers with colons between them, {fd} the first, and {mac}, {ifname}, {mtu}, {id} what they say; the environment has them
    as VIF_FDS, VIF_MAC, VIF_IFNAME, VIF_MTU and VIF_ENDPOINT_ID. COMMAND takes vifctl's place, as with exec; what it leaves in
    the background doesn't keep the endpoint.
    """
    if not command:
        raise click.UsageError("COMMAND is missing. Write it after two dashes.", click.get_current_context())
    spec = Spec.take(options)
    request = spec.to_request(["macvtap"] if spec.macvtap_mode else ["tap", "macvtap"])
    request.lifetime.CopyFrom(Lifetime(process=ProcessLifetime()))  # this one, which becomes the command
    try:
        with connect(settings) as client:
            return _run(client, request, command)
    except errors.VifError as error:
        raise NotStarted(error, as_json=settings.json) from error


class NotStarted(Failure):
    """vifd refused or can't be reached, so that the command was not started."""

    exit_code = NOT_STARTED_EXIT


def _run(client: Client, request: RequestEndpointRequest, command: Sequence[str]) -> int:
    endpoint = client.request_endpoint(request).endpoint
    with client.acquire_fds(endpoint.endpoint_id) as queues:
        values = _values(endpoint, queues.fds)
        argv = [_PLACEHOLDER.sub(lambda match: values[match[1]], argument) for argument in command]
        try:
            _become(argv, queues.fds, {**os.environ, **_environment(values)})
        except OSError as error:
            click.echo(f"vifctl: {argv[0]} can't be run: {error.strerror}", err=True)
            return NOT_FOUND_EXIT if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE_EXIT


def _become(argv: list[str], fds: Sequence[int], environment: dict[str, str]) -> NoReturn:
    """Execute the command in this process. It gets what this one was given, and the queues; all else is closed on the way."""
    for fd in fds:
        os.set_inheritable(fd, True)
    for number in _IGNORED_BY_PYTHON:
        signal.signal(number, signal.SIG_DFL)
    sys.stdout.flush()
    os.execvpe(argv[0], argv, environment)  # noqa: S606  (it is what the user asks for)


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
