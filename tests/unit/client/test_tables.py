import io
from datetime import UTC, datetime

import pytest
from rich.console import Console

from vifclient.cli import words
from vifclient.cli.tables import Tables
from vifclient.messages import (
    Consideration,
    ConsiderationOutcome,
    Endpoint,
    EndpointKind,
    EndpointState,
    Instance,
    PciDevice,
    PortSpec,
    RequestEndpointResponse,
    TapDevice,
    WatchEndpointsResponse,
    WatchEventKind,
)

ID = "3f0c1e9a-7c52-4b0e-9d0e-8a1f5f3f2b61"
ENDPOINT = Endpoint(
    endpoint_id=ID,
    generation=1,
    network="blue",
    network_driver="fake",
    state=EndpointState.ENDPOINT_STATE_ACTIVE,
    tap=TapDevice(ifname="vdt3k9x2mq7ab", queues=1),
    port=PortSpec(mac="52:54:00:12:34:56", mtu_bytes=1500),
    instance=Instance(name="[red]web1[/red]"),
)


def make_tables(width: int = 200) -> tuple[Tables, io.StringIO]:
    file = io.StringIO()
    return Tables(Console(file=file, width=10_000, highlight=False, force_terminal=True, _environ={}), width), file


def test_a_list_on_a_wide_terminal_is_in_colour() -> None:
    tables, file = make_tables()
    tables.endpoints([ENDPOINT])
    assert "\x1b[1;36mactive" in file.getvalue()
    assert "[red]web1[/red]" in file.getvalue()  # what callers write is shown, not obeyed


@pytest.mark.parametrize(
    ("width", "gone"),
    [
        (200, set()),
        (113, {"AGE"}),
        (100, {"AGE", "MAC"}),
        (80, {"AGE", "MAC", "KIND"}),
        (20, {"AGE", "MAC", "KIND"}),
    ],
)
def test_a_list_has_the_columns_that_there_is_room_for(width: int, gone: set[str]) -> None:
    tables, file = make_tables(width)
    tables.endpoints([ENDPOINT])
    assert {name for name in ("AGE", "MAC", "KIND") if name not in file.getvalue()} == gone
    assert ID in file.getvalue()
    assert "vdt3k9x2mq7ab" in file.getvalue()


def test_empty_answers_are_explained() -> None:
    tables, file = make_tables()
    tables.endpoints([])
    assert "There are no endpoints that you may see." in file.getvalue()


def test_what_to_do_with_a_new_endpoint() -> None:
    tables, file = make_tables()
    tables.requested(RequestEndpointResponse(endpoint=ENDPOINT))
    assert f"Take it down with: vifctl release {ID}" in file.getvalue()


def test_why_it_is_of_this_kind() -> None:
    tables, file = make_tables()
    first = Consideration(
        kind=EndpointKind.ENDPOINT_KIND_PCI,
        outcome=ConsiderationOutcome.CONSIDERATION_OUTCOME_FORBIDDEN_BY_POLICY,
        message="not for you",
    )
    second = Consideration(kind=EndpointKind.ENDPOINT_KIND_TAP, outcome=ConsiderationOutcome.CONSIDERATION_OUTCOME_CHOSEN)
    tables.requested(RequestEndpointResponse(endpoint=ENDPOINT, considered=[first, second]))
    assert "forbidden by policy" in file.getvalue()
    assert "not for you" in file.getvalue()


def test_a_watch_says_where_changes_begin() -> None:
    tables, file = make_tables()
    tables.event(WatchEndpointsResponse(kind=WatchEventKind.WATCH_EVENT_KIND_SYNCED))
    tables.event(WatchEndpointsResponse(kind=WatchEventKind.WATCH_EVENT_KIND_REMOVED, endpoint=ENDPOINT))
    synced, removed = file.getvalue().splitlines()
    assert "changes follow" in synced
    assert "removed" in removed
    assert "vdt3k9x2mq7ab" in removed


def test_a_value_of_a_later_vifd_is_its_number() -> None:
    assert words.enum_word(EndpointState.DESCRIPTOR, 77) == "77"


def test_devices_of_every_kind_have_a_name() -> None:
    assert words.device_name(ENDPOINT) == "vdt3k9x2mq7ab"
    assert words.device_name(Endpoint(pci=PciDevice(address="0000:03:10.2"))) == "0000:03:10.2"
    assert words.device_name(Endpoint()) == ""


@pytest.mark.parametrize(("seconds", "text"), [(-5, "0s"), (5, "5s"), (65, "1m"), (7300, "2h"), (200_000, "2d")])
def test_ages(seconds: int, text: str) -> None:
    endpoint = Endpoint()
    endpoint.create_time.FromSeconds(1_000_000)
    assert words.age(endpoint, datetime.fromtimestamp(1_000_000 + seconds, UTC)) == text
