import base64
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.messages import ID, batch, endpoint_id, request, with_unknown_field
from vif.v1 import endpoint_service_pb2 as pb
from vif.v1.host_service_pb2 import GetHostInfoRequest
from vifd.endpoints.engine import Release
from vifd.endpoints.garbage import Collection
from vifd.errors import InvalidRequest, Unsupported, Violation
from vifd.model import Caller, Filter
from vifd.server import requests

CALLER = Caller(1000, 1000)


def violations(check: Callable[[], object]) -> list[str]:
    with pytest.raises(InvalidRequest) as caught:
        check()
    return [violation.field for violation in caught.value.violations]


def test_a_release_names_an_endpoint_and_a_generation() -> None:
    assert requests.release(pb.ReleaseEndpointRequest(endpoint_id=ID, generation=2**64 - 1)) == Release(ID, 2**64 - 1)


def test_a_release_of_what_is_no_id_is_a_violation() -> None:
    assert violations(lambda: requests.release(pb.ReleaseEndpointRequest(endpoint_id="x"))) == ["endpoint_id"]


def test_a_batch_of_releases_is_taken_in_order() -> None:
    ids = [endpoint_id(i) for i in (2, 1)]
    message = pb.BatchReleaseEndpointsRequest(requests=[pb.ReleaseEndpointRequest(endpoint_id=i) for i in ids])
    assert requests.batch_release(message) == [Release(i) for i in ids]


@pytest.mark.parametrize("count", [0, 65, 500_000])
def test_a_batch_of_none_or_too_many_releases_is_a_violation(count: int) -> None:
    message = pb.BatchReleaseEndpointsRequest.FromString(b"\x0a\x00" * count)
    assert violations(lambda: requests.batch_release(message)) == ["requests"]


def test_of_a_flood_of_wrong_ids_to_keep_the_first_few_are_told() -> None:
    flood = pb.CollectGarbageRequest.FromString(b"\x0a\x00" * 100_000)
    assert violations(lambda: requests.collection(flood)) == [f"keep_endpoint_ids[{i}]" for i in range(64)]


def test_a_batch_of_releases_lists_every_violation() -> None:
    message = pb.BatchReleaseEndpointsRequest(requests=[pb.ReleaseEndpointRequest(endpoint_id="x")] * 2)
    assert violations(lambda: requests.batch_release(message)) == [
        "requests",
        "requests[0].endpoint_id",
        "requests[1].endpoint_id",
    ]


def test_what_is_found_wrong_of_a_batch_later_on_is_named_with_its_request() -> None:
    batch = [requests.endpoint_request(request(endpoint_id=endpoint_id(i)), CALLER) for i in (1, 2, 3)]
    found = InvalidRequest([Violation("port.addresses[1]", "is odd"), Violation("port.mac", "is odd")], endpoint_id(3))
    told = requests.of_batch(found, batch)
    assert [violation.field for violation in told.violations] == ["requests[2].port.addresses[1]", "requests[2].port.mac"]
    assert str(told).startswith("requests[2].port.addresses[1]: is odd; ")


def test_a_collection_says_what_stays() -> None:
    message = pb.CollectGarbageRequest(keep_endpoint_ids=[ID, ID, endpoint_id(2)], network="blue", dry_run=True)
    assert requests.collection(message) == Collection(frozenset({ID, endpoint_id(2)}), "blue", dry_run=True)


def test_a_collection_of_everything_has_to_be_meant() -> None:
    assert requests.collection(pb.CollectGarbageRequest(allow_empty=True)) == Collection(frozenset())
    assert violations(lambda: requests.collection(pb.CollectGarbageRequest(network="blue", dry_run=True))) == [
        "keep_endpoint_ids"
    ]


def test_a_collection_lists_every_violation() -> None:
    message = with_unknown_field(pb.CollectGarbageRequest(keep_endpoint_ids=[ID, "x", ""], network="Blue!"))
    assert violations(lambda: requests.collection(message)) == [
        "unknown_fields",
        "keep_endpoint_ids[1]",
        "keep_endpoint_ids[2]",
        "network",
    ]


def test_a_request_for_one_endpoint_names_it() -> None:
    assert requests.endpoint_id(pb.GetEndpointRequest(endpoint_id=ID)) == ID


@pytest.mark.parametrize(
    "check",
    [
        lambda: requests.endpoint_id(with_unknown_field(pb.GetEndpointRequest(endpoint_id=ID))),
        lambda: requests.release(with_unknown_field(pb.ReleaseEndpointRequest(endpoint_id=ID))),
        lambda: requests.wanted(with_unknown_field(pb.WatchEndpointsRequest())),
        lambda: requests.nothing(with_unknown_field(GetHostInfoRequest())),
        lambda: requests.batch_request(with_unknown_field(batch(request())), CALLER),
        lambda: requests.batch_release(
            with_unknown_field(pb.BatchReleaseEndpointsRequest(requests=[pb.ReleaseEndpointRequest(endpoint_id=ID)]))
        ),
    ],
)
def test_a_field_that_this_vifd_doesnt_know_is_a_violation(check: Callable[[], object]) -> None:
    assert violations(check) == ["unknown_fields"]


def test_a_request_of_a_batch_names_its_own_unknown_field() -> None:
    message = batch(with_unknown_field(request()))
    assert violations(lambda: requests.batch_request(message, CALLER)) == ["requests[0].unknown_fields"]


def test_a_filter_is_taken() -> None:
    message = pb.WatchEndpointsRequest(filter=pb.EndpointFilter(network="blue", instance_uuid="vm", labels={"a": "b"}))
    assert requests.wanted(message) == Filter("blue", "vm", {"a": "b"})


def test_no_filter_means_all() -> None:
    assert requests.wanted(pb.ListEndpointsRequest()) == Filter()


def test_a_bad_filter_is_a_list_of_violations() -> None:
    message = pb.ListEndpointsRequest(filter=pb.EndpointFilter(network="../x", instance_uuid="\n", labels={"": "x"}))
    assert sorted(violations(lambda: requests.wanted(message))) == ["filter.instance_uuid", "filter.labels['']", "filter.network"]


@pytest.mark.parametrize(("asked", "given_size"), [(0, 100), (1, 1), (1000, 1000), (1001, 1000), (2**32 - 1, 1000)])
def test_the_size_of_a_page_has_a_default_and_a_limit(asked: int, given_size: int) -> None:
    assert requests.page(pb.ListEndpointsRequest(page_size=asked)) == ("", given_size)


def test_a_page_token_leads_to_the_next_page_of_the_same_filter() -> None:
    first = pb.ListEndpointsRequest(filter=pb.EndpointFilter(labels={"a": "1", "b": "2"}))
    then = pb.ListEndpointsRequest(
        page_token=requests.page_token(first, ID), filter=pb.EndpointFilter(labels={"b": "2", "a": "1"}), page_size=5
    )
    assert requests.page(then) == (ID, 5)


def test_a_page_token_doesnt_fit_another_filter() -> None:
    token = requests.page_token(pb.ListEndpointsRequest(), ID)
    other = pb.ListEndpointsRequest(page_token=token, filter=pb.EndpointFilter(network="blue"))
    assert violations(lambda: requests.page(other)) == ["page_token"]


@pytest.mark.parametrize("token", ["x", "%%%%", "é", "AAAA", "/w==", base64.urlsafe_b64encode(b"x y").decode(), ID, "\0"])
def test_a_page_token_that_vifd_never_gave_is_a_violation(token: str) -> None:
    assert violations(lambda: requests.page(pb.ListEndpointsRequest(page_token=token))) == ["page_token"]


CHECKS: list[tuple[type, Callable[..., object]]] = [
    (pb.RequestEndpointRequest, lambda m: requests.endpoint_request(m, CALLER)),
    (pb.BatchRequestEndpointsRequest, lambda m: requests.batch_request(m, CALLER)),
    (pb.ReleaseEndpointRequest, requests.release),
    (pb.BatchReleaseEndpointsRequest, requests.batch_release),
    (pb.GetEndpointRequest, requests.endpoint_id),
    (pb.ListEndpointsRequest, requests.wanted),
    (pb.ListEndpointsRequest, requests.page),
]


def outcome(check: Callable[..., object], message: object) -> object:
    try:
        return check(message)
    except (InvalidRequest, Unsupported) as refusal:
        return str(refusal)


@pytest.mark.parametrize(("kind", "check"), CHECKS)
@given(data=st.binary(max_size=200))
def test_no_bytes_make_anything_but_a_value_or_a_refusal(kind: type, check: Callable[..., object], data: bytes) -> None:
    message = kind()
    try:
        message.ParseFromString(data)
    except Exception:
        return
    assert outcome(check, message)


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
NUMBER = st.integers(0, 2**32 - 1)
WORDS = st.sampled_from(["", ID, "blue", "52:54:00:00:00:01", "10.0.0.1/8"]) | TEXT


@given(st.data())
def test_no_request_makes_anything_but_a_value_or_a_refusal(data: st.DataObject) -> None:
    message = request(endpoint_id=data.draw(WORDS), network=data.draw(WORDS), port_id=data.draw(WORDS))
    message.acceptable[0].macvtap.mode = data.draw(st.integers(-(2**31), 2**31 - 1))
    message.acceptable.add().tap.queues = data.draw(NUMBER)
    message.port.mac, message.port.mtu_bytes = data.draw(WORDS), data.draw(NUMBER)
    message.port.addresses.extend(data.draw(st.lists(WORDS, max_size=3)))
    message.port.vlan.trunk_vids.extend(data.draw(st.lists(NUMBER, max_size=3)))
    message.instance.uuid, message.instance.name = data.draw(WORDS), data.draw(WORDS)
    message.labels.update(data.draw(st.dictionaries(WORDS, WORDS, max_size=3)))
    message.owner.uid, message.owner.gid = data.draw(NUMBER), data.draw(NUMBER)
    assert outcome(lambda m: requests.endpoint_request(m, CALLER), message)
