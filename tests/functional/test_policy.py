"""Who may do what, by the configuration's policy."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.asking import BRIDGE, TAP, asked, event, make, new_id, refusal
from tests.support.daemon import Daemon, taps
from tests.support.users import user
from vifclient import Client, VifError
from vifclient.messages import ConsiderationOutcome, Owner

READER, USER, OTHER, DELEGATE, ADMIN, BRIDGER, LIMITED = range(20101, 20108)
BRIDGERS, GENEROUS = 20201, 20202

NETWORKS = f"""
[networks.blue]
driver = "bridge"
bridge = "br-blue"

[networks.red]
driver = "bridge"
bridge = "br-red"

[[policy]]
uid = {READER}
networks = ["blue"]
role = "read"

[[policy]]
uid = {USER}
networks = ["blue"]

[[policy]]
uid = {OTHER}

[[policy]]
uid = {DELEGATE}
networks = ["blue"]
role = "delegate"

[[policy]]
uid = {ADMIN}
role = "admin"

[[policy]]
gid = {BRIDGERS}
networks = ["blue"]
kinds = ["bridge"]
guard = "optional"

[[policy]]
uid = {LIMITED}
max_endpoints = 3

[[policy]]
gid = {GENEROUS}
max_endpoints = 5
"""

AsUser = Callable[..., Client]


@pytest.fixture
def as_user(vifd: Daemon) -> Iterator[AsUser]:
    """Clients of any user, with any supplementary groups."""
    with contextlib.ExitStack() as stack:
        yield lambda uid, *groups: stack.enter_context(stack.enter_context(user(uid, groups=groups)).client(vifd))


def test_a_reader_sees_every_endpoint_of_its_networks(client: Client, as_user: AsUser) -> None:
    blue, red = make(client), make(client, network="red")
    reader = as_user(READER)
    assert list(reader.list_endpoints()) == [blue]
    assert reader.get_endpoint(blue.endpoint_id) == blue
    with refusal("NOT_FOUND", "UNKNOWN_ENDPOINT"):
        reader.get_endpoint(red.endpoint_id)
    with reader.watch_endpoints() as watch:
        assert [event(next(watch))[:2] for _ in range(2)] == [("CURRENT", blue.endpoint_id), ("SYNCED", "")]


def test_a_reader_changes_nothing(vifd: Daemon, client: Client, as_user: AsUser) -> None:
    endpoint, reader = make(client), as_user(READER)
    with refusal("PERMISSION_DENIED", "NOT_ALLOWED"):
        make(reader)
    with refusal("PERMISSION_DENIED", "NOT_ALLOWED"):
        reader.release_endpoint(endpoint.endpoint_id)
    with user(READER) as same, refusal("PERMISSION_DENIED", "NOT_ALLOWED"):
        same.acquire_fds(vifd, endpoint.endpoint_id)
    assert len(taps(vifd.netns)) == 1


def test_a_user_has_endpoints_of_its_own_alone(client: Client, as_user: AsUser) -> None:
    make(client)
    mine = make(as_user(USER))
    assert list(as_user(USER).list_endpoints()) == [mine]
    as_user(USER).release_endpoint(mine.endpoint_id)


def test_a_network_that_a_caller_may_not_know_is_as_one_that_is_not_there(as_user: AsUser) -> None:
    caller = as_user(USER)
    with refusal("NOT_FOUND", "UNKNOWN_NETWORK") as hidden:
        make(caller, network="red")
    with refusal("NOT_FOUND", "UNKNOWN_NETWORK") as missing:
        make(caller, network="green")
    assert hidden.value.message.replace("red", "green") == missing.value.message


def test_the_host_shows_each_caller_its_networks(client: Client, as_user: AsUser) -> None:
    def networks(one: Client) -> list[str]:
        return [network.name for network in one.get_host_info().networks]

    assert networks(as_user(USER)) == ["blue"]
    assert networks(as_user(READER)) == ["blue"]
    assert networks(as_user(OTHER)) == networks(client) == ["blue", "red"]


def test_a_delegate_makes_and_releases_endpoints_for_others_on_its_networks(vifd: Daemon, as_user: AsUser) -> None:
    delegate = as_user(DELEGATE)
    endpoint = make(delegate, owner=Owner(uid=USER))
    assert int(taps(vifd.netns)[0]["linkinfo"]["info_data"]["user"]) == USER
    assert list(as_user(USER).list_endpoints()) == [endpoint]
    assert list(delegate.list_endpoints()) == [endpoint]
    delegate.release_endpoint(endpoint.endpoint_id)
    assert taps(vifd.netns) == []


def test_an_owner_releases_what_a_delegate_made_for_it(vifd: Daemon, as_user: AsUser) -> None:
    as_user(USER).release_endpoint(make(as_user(DELEGATE), owner=Owner(uid=USER)).endpoint_id)
    assert taps(vifd.netns) == []


def test_a_delegate_of_one_network_is_nothing_on_another(client: Client, as_user: AsUser) -> None:
    red = make(client, network="red")
    with refusal("NOT_FOUND", "UNKNOWN_NETWORK"):
        make(as_user(DELEGATE), network="red", owner=Owner(uid=USER))
    with refusal("PERMISSION_DENIED", "NOT_ALLOWED"):
        as_user(DELEGATE).release_endpoint(red.endpoint_id)


def test_a_user_is_no_delegate(as_user: AsUser) -> None:
    with refusal("PERMISSION_DENIED", "NOT_ALLOWED"):
        make(as_user(USER), owner=Owner(uid=OTHER))


def test_an_administrator_may_do_everything_on_its_networks(vifd: Daemon, as_user: AsUser) -> None:
    theirs = make(as_user(USER))
    admin = as_user(ADMIN)
    assert list(admin.list_endpoints()) == [theirs]
    admin.release_endpoint(theirs.endpoint_id)
    make(admin, network="red", owner=Owner(uid=OTHER))
    assert int(taps(vifd.netns)[0]["linkinfo"]["info_data"]["user"]) == OTHER


def test_root_is_an_administrator_without_a_rule(client: Client, as_user: AsUser) -> None:
    theirs = make(as_user(USER))
    assert list(client.list_endpoints()) == [theirs]
    client.release_endpoint(theirs.endpoint_id)
    assert make(client, network="red", owner=Owner(uid=USER)).owner.uid == USER


def test_a_kind_that_no_rule_gives_is_passed_over(as_user: AsUser) -> None:
    caller = as_user(BRIDGER, BRIDGERS)
    answer = caller.request_endpoint(asked(acceptable=[TAP, BRIDGE]))
    assert answer.endpoint.WhichOneof("location") == "bridge"
    assert answer.considered[0].outcome == ConsiderationOutcome.CONSIDERATION_OUTCOME_FORBIDDEN_BY_POLICY


def test_a_kind_that_no_rule_gives_is_refused_when_nothing_else_would_do(as_user: AsUser) -> None:
    with refusal("FAILED_PRECONDITION", "NO_ACCEPTABLE_KIND") as caught:
        make(as_user(BRIDGER, BRIDGERS))
    assert "policy" in caught.value.message


def test_a_kind_that_cannot_be_guarded_is_not_for_who_has_to_be(as_user: AsUser) -> None:
    answer = as_user(USER).request_endpoint(asked(acceptable=[BRIDGE, TAP]))
    assert answer.endpoint.WhichOneof("location") == "tap"
    assert answer.considered[0].outcome == ConsiderationOutcome.CONSIDERATION_OUTCOME_FORBIDDEN_BY_POLICY
    with refusal("FAILED_PRECONDITION", "NO_ACCEPTABLE_KIND") as caught:
        make(as_user(USER), acceptable=[BRIDGE])
    assert "can't be guarded" in caught.value.message
    assert "accept tap, or ask the administrator" in caught.value.message
    assert 'guard = "optional"' in caught.value.message
    assert "without it" not in caught.value.message


def test_a_quota_is_kept_and_freed_by_a_release(as_user: AsUser) -> None:
    caller = as_user(LIMITED)
    ids = [make(caller).endpoint_id for _ in range(3)]
    with refusal("RESOURCE_EXHAUSTED", "QUOTA"):
        make(caller)
    with refusal("RESOURCE_EXHAUSTED", "QUOTA"):
        make(caller, network="red")
    with refusal("RESOURCE_EXHAUSTED", "QUOTA"):
        make(caller, validate_only=True)
    assert make(caller, ids[0]).endpoint_id == ids[0]
    caller.release_endpoint(ids[0])
    make(caller, network="red")


def test_a_quota_holds_for_requests_at_once(vifd: Daemon, as_user: AsUser) -> None:
    caller = as_user(LIMITED)

    def ask(_: int) -> str:
        try:
            make(caller)
        except VifError as error:
            return error.reason
        return "made"

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(24)))
    assert (answers.count("made"), answers.count("QUOTA")) == (3, 21)
    assert len(taps(vifd.netns)) == 3


def test_a_batch_beyond_the_quota_makes_nothing(vifd: Daemon, as_user: AsUser) -> None:
    caller = as_user(LIMITED)
    make(caller)
    with refusal("RESOURCE_EXHAUSTED", "QUOTA"):
        caller.batch_request_endpoints([asked() for _ in range(3)])
    assert len(taps(vifd.netns)) == 1
    caller.batch_request_endpoints([asked() for _ in range(2)])


def test_the_most_generous_rule_counts(as_user: AsUser) -> None:
    caller = as_user(LIMITED, GENEROUS)
    for _ in range(5):
        make(caller, new_id())
    with refusal("RESOURCE_EXHAUSTED", "QUOTA"):
        make(caller)


def test_a_quota_is_the_owners_also_when_a_delegate_asks(as_user: AsUser) -> None:
    for _ in range(3):
        make(as_user(DELEGATE), owner=Owner(uid=LIMITED))
    with refusal("RESOURCE_EXHAUSTED", "QUOTA"):
        make(as_user(LIMITED))
