"""The commands on endpoints: request, release, update, check, activate, list, show, watch."""

from collections.abc import Iterable
from decimal import Decimal
from typing import Any
from uuid import UUID

import click

from vifclient import errors
from vifclient.calls import BATCH
from vifclient.cli.command import Command, connect
from vifclient.cli.completers import complete_endpoint, complete_network
from vifclient.cli.output import open_output
from vifclient.cli.port import Port, port_option, port_options
from vifclient.cli.quantities import read_duration
from vifclient.cli.settings import Settings, check_text, split_labels
from vifclient.cli.spec import Spec, spec_options
from vifclient.cli.words import KINDS
from vifclient.client import Client
from vifclient.messages import CheckEndpointResponse, ReleaseEndpointRequest, RequestEndpointRequest

DRIFTS_EXIT = 1
_MAX_PID, _MAX_LEASE_S = 1 << 22, 366 * 86400
_EXAMPLE_ID = "3f0c1e9a-7c52-4b0e-9d0e-8a1f5f3f2b61"


def _filter_options(function: Any) -> Any:
    label = click.option(
        "--label", "labels", callback=split_labels, multiple=True, metavar="KEY=VALUE", help="Only those with this label."
    )
    instance = click.option("--instance", type=click.UUID, metavar="UUID", help="Only those of the VM with this UUID.")
    network = click.option(
        "--network",
        callback=check_text,
        default="",
        metavar="NETWORK",
        shell_complete=complete_network,
        help="Only those on this network.",
    )
    return network(instance(label(function)))


@click.command(
    "request",
    cls=Command,
    examples=[
        "vifctl request default",
        "vifctl request blue --kind tap --kind bridge --queues 4 --instance-name web1",
        "vifctl request blue --address 10.0.0.7 --rate-from-vm 100M --rate-to-vm 1G --vlan 7",
        "vifctl request blue --lease 30s",
        "vifctl request fast --kind pci --vlan 7 --rate-from-vm 1G --numa-node 0",
        "vifctl request fast --standby blue",
        "vifctl request blue --validate-only",
    ],
)
@spec_options
@click.option(
    "--kind",
    "kinds",
    type=click.Choice(KINDS),
    multiple=True,
    help="What you can attach; may be repeated, best first. [default: tap; with --standby pci]",
)
@click.option(
    "--standby",
    callback=check_text,
    default="",
    metavar="NETWORK",
    shell_complete=complete_network,
    help="Make it a pair: a PCI function, and a tap or macvtap on this network that stands in for it while the VM moves.",
)
@click.option("--process", type=click.IntRange(1, _MAX_PID), metavar="PID", help="Release it when this process ends.")
@click.option(
    "--lease",
    callback=read_duration(1, _MAX_LEASE_S),
    metavar="TIME",
    help="Release it when nobody has called for it for so long: 30s, 5m, 2h.",
)
@click.option("--validate-only", is_flag=True, help="Only say what would be made, and why.")
@click.pass_obj
def request_command(
    settings: Settings,
    /,
    kinds: tuple[str, ...],
    *,
    standby: str,
    validate_only: bool,
    **options: Any,
) -> None:
    """Ask for an endpoint on NETWORK, and show it.

    It stays until `vifctl release`, or as --process or --lease say. The same request with the same --id shows the same endpoint
    again, and renews its lease, as `vifctl show` does.

    With --standby it is two, made together or not at all. Both have one MAC, and the --mtu; the --queues are of what stands in;
    what else the port is to be like is the PCI function's.
    """
    process, lease = options.pop("process"), options.pop("lease")
    if process is not None and lease is not None:
        raise click.UsageError("--process and --lease exclude each other.", click.get_current_context())
    if standby and set(kinds) - {"pci"}:
        raise click.UsageError("--standby goes with --kind pci alone.", click.get_current_context())
    spec = Spec.take(options)
    if standby:
        requests = spec.to_pair(standby, validate_only=validate_only)
    else:
        requests = [spec.to_request(kinds or ["tap"], validate_only=validate_only)]
    for request in requests:
        _set_lifetime(request, process, lease)
    output = open_output(settings)
    with connect(settings) as client:
        if standby:
            output.requested_pair(client.batch_request_endpoints(requests))
        else:
            output.requested(client.request_endpoint(requests[0]))


def _set_lifetime(request: RequestEndpointRequest, process: int | None, lease: Decimal | None) -> None:
    if process is not None:
        request.lifetime.process.pid = process
    if lease is not None:
        request.lifetime.lease.ttl.FromNanoseconds(int(lease * 10**9))


@click.command(
    "release",
    cls=Command,
    examples=[
        "vifctl release 3f0c1e9a-7c52-4b0e-9d0e-8a1f5f3f2b61",
        "vifctl list --network blue --json | jq -r '.endpoints[].endpoint_id' | xargs vifctl release",
    ],
)
@click.argument("endpoint_ids", metavar="ID...", type=click.UUID, nargs=-1, required=True, shell_complete=complete_endpoint)
@click.option(
    "--generation",
    type=click.IntRange(0, 2**64 - 1),
    default=0,
    metavar="N",
    help="Only this life of the id. [default: whichever]",
)
@click.option("--pair", is_flag=True, help="Also the other part of the pair that each is part of.")
@click.pass_obj
def release_command(settings: Settings, endpoint_ids: tuple[UUID, ...], generation: int, *, pair: bool) -> None:
    """Take the endpoints ID... down.

    It is no error if one is gone already.
    """
    unique = list(dict.fromkeys(map(str, endpoint_ids)))
    if generation and (pair or len(unique) > 1):
        raise click.UsageError("--generation goes with one ID: each has generations of its own.", click.get_current_context())
    with connect(settings) as client:
        if pair:
            unique = list(dict.fromkeys(part for one in unique for part in (one, *_find_partner(client, one))))
        requests = [ReleaseEndpointRequest(endpoint_id=one, generation=generation) for one in unique]
        for start in range(0, len(requests), BATCH):
            client.batch_release_endpoints(requests[start : start + BATCH])
    open_output(settings).released(unique)


def _find_partner(client: Client, endpoint_id: str) -> list[str]:
    """Give the other part of an endpoint's pair; none where it is alone, or gone."""
    try:
        partner = client.get_endpoint(endpoint_id).partner_endpoint_id
    except errors.NotFound:
        return []
    return [partner] if partner else []


@click.command(
    "update",
    cls=Command,
    examples=[
        f"vifctl update {_EXAMPLE_ID} --rate-from-vm 100M --isolated",
        f"vifctl update {_EXAMPLE_ID} --address 10.0.0.7 --address 2001:db8::7",
        f"vifctl update {_EXAMPLE_ID} --no-limits --no-link",
    ],
)
@click.argument("endpoint_id", metavar="ID", type=click.UUID, shell_complete=complete_endpoint)
@port_options(changing=True)
@port_option(
    "--no-addresses", is_flag=True, help="It has no addresses of its own any more; on a network with a pool, one of that."
)
@port_option("--no-public-addresses", is_flag=True, help="It isn't reached from outside any more.")
@port_option("--no-vlan", is_flag=True, help="It is in the network's VLAN again.")
@port_option("--no-limits", is_flag=True, section="Limits", help="It may send and receive without limit.")
@click.pass_obj
def update_command(settings: Settings, /, endpoint_id: UUID, **options: Any) -> None:
    """Change the port of the endpoint ID, also while its VM runs, and show it.

    All that is given changes, or nothing; what isn't given stays. Addresses and VLANs take the place of those before. A limit of
    0 takes that limit off.
    """
    removed = _take_removals(options)
    port = Port.take(options)
    mask = port.mask()
    for name, option in removed.items():
        if name in mask:
            raise click.UsageError(f"{option} can't go together with what it takes off.", click.get_current_context())
    if not mask and not removed:
        raise click.UsageError("Nothing to change: give at least one option of the port.", click.get_current_context())
    with connect(settings) as client:
        # The API changes all limits at once: those that aren't given have to be said again.
        before = client.get_endpoint(str(endpoint_id)).port.limits if port.has_limits else None
        endpoint = client.update_endpoint(str(endpoint_id), port.to_message(before), [*mask, *removed])
    open_output(settings).endpoint(endpoint)


def _take_removals(options: dict[str, Any]) -> dict[str, str]:
    given = {name: options.pop(f"no_{name}") for name in ("addresses", "public_addresses", "vlan", "limits")}
    return {name: f"--no-{name.replace('_', '-')}" for name, is_given in given.items() if is_given}


@click.command(
    "check",
    cls=Command,
    examples=[
        "vifctl check",
        f"vifctl check {_EXAMPLE_ID} --repair",
    ],
)
@click.argument("endpoint_ids", metavar="[ID...]", type=click.UUID, nargs=-1, shell_complete=complete_endpoint)
@click.option("--repair", is_flag=True, help="Mend what differs; takes the right to change the endpoint.")
@click.pass_obj
def check_command(settings: Settings, endpoint_ids: tuple[UUID, ...], *, repair: bool) -> int:
    """Compare the endpoints ID... with what is there, or all that you may see.

    It lists what differs. The exit status is 0 when nothing does, or is left after --repair, and else 1.
    """
    unique = list(dict.fromkeys(map(str, endpoint_ids)))
    with connect(settings) as client:
        answers = _check(client, unique, repair=repair) if unique else _check_all(client, repair=repair)
    open_output(settings).checked(answers, repair=repair)
    drifting = any(answer.endpoint.drifts if repair else answer.drifts for answer in answers)
    return DRIFTS_EXIT if drifting else 0


def _check(client: Client, endpoint_ids: Iterable[str], *, repair: bool) -> list[CheckEndpointResponse]:
    return [client.check_endpoint(endpoint_id, repair=repair) for endpoint_id in endpoint_ids]


def _check_all(client: Client, *, repair: bool) -> list[CheckEndpointResponse]:
    answers = []
    for endpoint in client.list_endpoints():
        try:
            answers += _check(client, [endpoint.endpoint_id], repair=repair)
        except errors.NotFound:  # it was released meanwhile
            continue
    return answers


@click.command(
    "activate",
    cls=Command,
    examples=[
        f"vifctl activate {_EXAMPLE_ID}",
    ],
)
@click.argument("endpoint_id", metavar="ID", type=click.UUID, shell_complete=complete_endpoint)
@click.pass_obj
def activate_command(settings: Settings, endpoint_id: UUID) -> None:
    """Say that the VM of the endpoint ID runs here now, and show the endpoint.

    For a tap vifd notices it by itself. It tells the network system, and announces the VM out of the network's uplink.
    """
    with connect(settings) as client:
        endpoint = client.activate_endpoint(str(endpoint_id))
    open_output(settings).endpoint(endpoint)


@click.command(
    "list",
    cls=Command,
    examples=[
        "vifctl list",
        "vifctl list --network blue --label tier=web",
        "vifctl list --json | jq -r '.endpoints[].tap.ifname'",
    ],
)
@_filter_options
@click.pass_obj
def list_command(settings: Settings, network: str, instance: UUID | None, labels: list[tuple[str, str]]) -> None:
    """List the endpoints that you may see."""
    with connect(settings) as client:
        found = client.list_endpoints(network=network, instance_uuid=str(instance or ""), labels=dict(labels))
        open_output(settings).endpoints(found)


@click.command(
    "show",
    cls=Command,
    examples=[
        "vifctl show 3f0c1e9a-7c52-4b0e-9d0e-8a1f5f3f2b61",
    ],
)
@click.argument("endpoint_id", metavar="ID", type=click.UUID, shell_complete=complete_endpoint)
@click.pass_obj
def show_command(settings: Settings, endpoint_id: UUID) -> None:
    """Show everything about the endpoint ID."""
    with connect(settings) as client:
        endpoint = client.get_endpoint(str(endpoint_id))
    open_output(settings).endpoint(endpoint)


@click.command(
    "watch",
    cls=Command,
    examples=[
        "vifctl watch",
        "vifctl watch --network blue --json | jq -r 'select(.kind == \"WATCH_EVENT_KIND_ADDED\").endpoint.endpoint_id'",
    ],
)
@_filter_options
@click.pass_obj
def watch_command(settings: Settings, network: str, instance: UUID | None, labels: list[tuple[str, str]]) -> None:
    """Follow the endpoints: first those that are there, then each change.

    It goes on until Ctrl-C, or as long as --timeout says. It ends with an error when vifd stops, for it may then miss changes:
    start it again.
    """
    output = open_output(settings)
    instance_uuid = str(instance or "")
    with connect(settings) as client:
        events = client.watch_endpoints(
            network=network, instance_uuid=instance_uuid, labels=dict(labels), timeout_s=settings.timeout
        )
        try:
            with events:
                for event in events:
                    output.event(event)
        except errors.DeadlineExceeded:  # --timeout says how long to watch
            return
