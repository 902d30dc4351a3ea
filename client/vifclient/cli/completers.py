"""What a shell completes from the running daemon: names of networks and ids of endpoints. Where none answers, nothing."""

from collections.abc import Callable, Iterable

import click
from click.shell_completion import CompletionItem

from vifclient import errors, sockets
from vifclient.cli import words
from vifclient.cli.settings import Settings
from vifclient.client import Client

_PATIENCE_S = 0.5  # a person waits at the prompt


def complete_network(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete a network's name."""
    return _complete(ctx, incomplete, _networks)


def complete_endpoint(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete an endpoint's id."""
    given = {str(value) for value in ctx.params.get("endpoint_ids") or ()}
    return [item for item in _complete(ctx, incomplete, _endpoints) if item.value not in given]


def _networks(client: Client) -> Iterable[CompletionItem]:
    return [CompletionItem(network.name, help=network.network_driver) for network in client.get_host_info().networks]


def _endpoints(client: Client) -> Iterable[CompletionItem]:
    for endpoint in client.list_endpoints():
        about = [endpoint.network, words.device_name(endpoint), words.instance_name(endpoint)]
        yield CompletionItem(endpoint.endpoint_id, help=" ".join(filter(None, about)))


def _complete(ctx: click.Context, incomplete: str, ask: Callable[[Client], Iterable[CompletionItem]]) -> list[CompletionItem]:
    path = sockets.find_socket_path(ctx.ensure_object(Settings).socket)
    if sockets.find_obstacle(path):
        return []
    try:
        with Client(path, timeout_s=_PATIENCE_S) as client:
            return [item for item in ask(client) if str(item.value).startswith(incomplete)]
    except errors.VifError:  # a prompt is no place for error messages
        return []
