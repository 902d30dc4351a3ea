"""Answers as JSON: protobuf's own mapping, field names as in the .proto files, every field present."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import click
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from vifclient.cli.diagnosis import Finding
from vifclient.messages import (
    CheckEndpointResponse,
    Endpoint,
    GetHostInfoResponse,
    RequestEndpointResponse,
    WatchEndpointsResponse,
)


def to_dict(message: Message) -> dict[str, Any]:
    """Turn a message into what `--json` prints.

    Args:
        message: The message.

    Returns:
        Its fields. Those without a value have their default, so that scripts find the same keys each time; messages that aren't
        set are missing. 64-bit numbers are strings, as protobuf's JSON has them.
    """
    answer: dict[str, Any] = MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    return answer


class JsonOutput:
    """Prints JSON."""

    def requested(self, answer: RequestEndpointResponse) -> None:
        """Print `{"endpoint": {...}, "considered": [...], "plan": [...]}`."""
        _print(to_dict(answer))

    def requested_pair(self, answers: Sequence[RequestEndpointResponse]) -> None:
        """Print `{"responses": [{"endpoint": {...}, "considered": [...], "plan": [...]}, ...]}`."""
        _print({"responses": [to_dict(answer) for answer in answers]})

    def released(self, endpoint_ids: list[str]) -> None:
        """Print `{"released_endpoint_ids": [...]}`."""
        _print({"released_endpoint_ids": endpoint_ids})

    def collected(self, endpoint_ids: list[str], *, dry_run: bool) -> None:  # noqa: ARG002  (who asked knows)
        """Print `{"released_endpoint_ids": [...]}`, also of a dry run."""
        self.released(endpoint_ids)

    def checked(self, answers: Sequence[CheckEndpointResponse], *, repair: bool) -> None:  # noqa: ARG002  (the answers say it)
        """Print `{"checks": [{"drifts": [...], "endpoint": {...}}]}`."""
        _print({"checks": [to_dict(answer) for answer in answers]})

    def endpoint(self, endpoint: Endpoint) -> None:
        """Print `{"endpoint": {...}}`."""
        _print({"endpoint": to_dict(endpoint)})

    def endpoints(self, endpoints: Iterable[Endpoint]) -> None:
        """Print `{"endpoints": [...]}`."""
        _print({"endpoints": [to_dict(endpoint) for endpoint in endpoints]})

    def event(self, event: WatchEndpointsResponse) -> None:
        """Print `{"kind": "...", "endpoint": {...}}` on a line."""
        click.echo(json.dumps(to_dict(event)))  # click flushes

    def networks(self, info: GetHostInfoResponse) -> None:
        """Print `{"networks": [...]}`."""
        _print({"networks": [to_dict(network) for network in info.networks]})

    def host(self, info: GetHostInfoResponse) -> None:
        """Print `{"version": "...", "networks": [...], ...}`."""
        _print(to_dict(info))

    def diagnosed(self, findings: Sequence[Finding]) -> None:
        """Print `{"findings": [{"subject": "...", "problem": "...", "advice": "..."}]}`."""
        _print({"findings": [asdict(finding) for finding in findings]})


def open_output() -> JsonOutput:
    """Open the output."""
    return JsonOutput()


def _print(answer: dict[str, Any]) -> None:
    click.echo(json.dumps(answer, indent=2))
