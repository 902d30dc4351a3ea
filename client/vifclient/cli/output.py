"""What a command prints: the same events for tables and for JSON."""

from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Protocol

from vifclient.cli.diagnosis import Finding
from vifclient.cli.settings import Settings
from vifclient.messages import (
    CheckEndpointResponse,
    Endpoint,
    GetHostInfoResponse,
    RequestEndpointResponse,
    WatchEndpointsResponse,
)


class Output(Protocol):
    """How answers are shown."""

    def requested(self, answer: RequestEndpointResponse) -> None:
        """Show an endpoint that was made, or with `validate_only` would be."""

    def requested_pair(self, answers: Sequence[RequestEndpointResponse]) -> None:
        """Show the parts of a pair, likewise."""

    def released(self, endpoint_ids: list[str]) -> None:
        """Show which endpoints are gone."""

    def collected(self, endpoint_ids: list[str], *, dry_run: bool) -> None:
        """Show which endpoints were garbage, and are gone unless it was a dry run."""

    def checked(self, answers: Sequence[CheckEndpointResponse], *, repair: bool) -> None:
        """Show what differed; with `repair`, also whether it differs still."""

    def endpoint(self, endpoint: Endpoint) -> None:
        """Show everything about an endpoint."""

    def endpoints(self, endpoints: Iterable[Endpoint]) -> None:
        """Show a list."""

    def event(self, event: WatchEndpointsResponse) -> None:
        """Show an event of a watch, at once."""

    def networks(self, info: GetHostInfoResponse) -> None:
        """Show the networks."""

    def host(self, info: GetHostInfoResponse) -> None:
        """Show the host."""

    def diagnosed(self, findings: Sequence[Finding]) -> None:
        """Show what is wrong with the host, or that nothing is."""


def open_output(settings: Settings) -> Output:
    """Choose how answers are shown.

    Args:
        settings: What the global options say.

    Returns:
        The output.
    """
    # Imported here, for rich takes longer to import than JSON to print.
    module = import_module("vifclient.cli.json_output" if settings.json else "vifclient.cli.tables")
    output: Output = module.open_output()
    return output
