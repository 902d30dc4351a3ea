"""The commands on the host: host, networks."""

import click

from vifclient.cli.command import Command, connect
from vifclient.cli.output import open_output
from vifclient.cli.settings import Settings


@click.command(
    "networks",
    cls=Command,
    examples=[
        "vifctl networks",
    ],
)
@click.pass_obj
def networks_command(settings: Settings) -> None:
    """List the networks that you may use, and the kinds of endpoint that each offers now."""
    with connect(settings) as client:
        info = client.get_host_info()
    open_output(settings).networks(info)


@click.command(
    "host",
    cls=Command,
    examples=[
        "vifctl host --json | jq -r .version",
    ],
)
@click.pass_obj
def host_command(settings: Settings) -> None:
    """Show the version of this host's vifd, its drivers and its networks."""
    with connect(settings) as client:
        info = client.get_host_info()
    open_output(settings).host(info)
