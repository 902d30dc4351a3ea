"""The command collect-garbage: releases the caller's endpoints but those to keep."""

from uuid import UUID

import click

from vifclient.cli.command import Command, connect
from vifclient.cli.completers import complete_endpoint, complete_network
from vifclient.cli.output import open_output
from vifclient.cli.settings import Settings, check_text


@click.command(
    "collect-garbage",
    cls=Command,
    examples=[
        "vifctl collect-garbage --dry-run 3f0c1e9a-7c52-4b0e-9d0e-8a1f5f3f2b61",
        "vifctl collect-garbage --network blue --all",
    ],
)
@click.argument("endpoint_ids", metavar="[ID...]", type=click.UUID, nargs=-1, shell_complete=complete_endpoint)
@click.option(
    "--network",
    callback=check_text,
    default="",
    metavar="NETWORK",
    shell_complete=complete_network,
    help="Only those on this network.",
)
@click.option("--all", "everything", is_flag=True, help="Keep none: without IDs this has to be said.")
@click.option("--dry-run", is_flag=True, help="Only say which would be released.")
@click.pass_obj
def collect_garbage_command(
    settings: Settings, endpoint_ids: tuple[UUID, ...], *, network: str, everything: bool, dry_run: bool
) -> None:
    """Release your own endpoints, but not ID... and what is being made at the time.

    Your own are those whose owner you are, whatever your role is.
    """
    if everything == bool(endpoint_ids):
        raise click.UsageError("Give either the IDs to keep, or --all to keep none.", click.get_current_context())
    with connect(settings) as client:
        collected = client.collect_garbage(map(str, endpoint_ids), network=network, dry_run=dry_run, allow_empty=everything)
    open_output(settings).collected(collected, dry_run=dry_run)
