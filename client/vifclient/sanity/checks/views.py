"""GetEndpoint and ListEndpoints."""

from __future__ import annotations

from vif.v1.endpoint_service_pb2 import EndpointFilter, ListEndpointsRequest
from vifclient.calls import BATCH
from vifclient.errors import InvalidArgument
from vifclient.messages import Instance
from vifclient.sanity.check import check, expect, expect_true, refused
from vifclient.sanity.session import Session

_SERVICE = "endpoint_service.proto: "
_LIST, _LIST_REQUEST, _FILTER = f"{_SERVICE}ListEndpoints", f"{_SERVICE}ListEndpointsRequest", f"{_SERVICE}EndpointFilter"
_DEFAULT_PAGE = 100


@check("get.what-was-made", "Shows one endpoint.", f"{_SERVICE}GetEndpoint")
def _get(session: Session) -> None:
    endpoint = session.make()
    expect("the endpoint", session.find(endpoint.endpoint_id), endpoint)


@check("list.by-id-in-pages", "Shows the endpoints that the caller may see, by id, in pages.", _LIST)
def _pages(session: Session) -> None:
    ids = sorted(session.make().endpoint_id for _ in range(5))
    expect("the list", [one.endpoint_id for one in session.listed()], ids)
    pages: list[list[str]] = []
    token = ""
    while token or not pages:
        request = ListEndpointsRequest(filter=session.filter, page_size=2, page_token=token)
        page = session.call("ListEndpoints", request)
        pages.append([one.endpoint_id for one in page.endpoints])
        token = page.next_page_token
    expect("pages of two", pages, [ids[:2], ids[2:4], ids[4:]])


@check("list.no-page-after-the-last", "Empty: this is the last.", f"{_SERVICE}ListEndpointsResponse")
def _last_page(session: Session) -> None:
    for _ in range(2):
        session.make()
    page = session.call("ListEndpoints", ListEndpointsRequest(filter=session.filter, page_size=2))
    expect("next_page_token of a page with all that there is", page.next_page_token, "")


@check("list.goes-on-whatever-happened", "`next_page_token` of the answer before, to the same filter.", _LIST_REQUEST)
def _goes_on(session: Session) -> None:
    ids = sorted(session.make().endpoint_id for _ in range(4))
    request = ListEndpointsRequest(filter=session.filter, page_size=2)
    request.page_token = session.call("ListEndpoints", request).next_page_token
    session.release(ids[0])
    session.release(ids[1])
    rest = [one.endpoint_id for one in session.call("ListEndpoints", request).endpoints]
    expect("the second page, though the first one's endpoints are gone", rest, ids[2:])


@check("list.page-size", "0: 100. More than 1,000 counts as 1,000.", _LIST_REQUEST)
def _page_size(session: Session) -> None:
    count = _DEFAULT_PAGE + 1
    for start in range(0, count, BATCH):
        session.ask_batch([session.request() for _ in range(min(BATCH, count - start))])
    for size, expected in ((0, _DEFAULT_PAGE), (1_000_000, count)):
        page = session.call("ListEndpoints", ListEndpointsRequest(filter=session.filter, page_size=size))
        expect(f"endpoints of a page of size {size}", len(page.endpoints), expected)


@check("list.bad-token-refused", "a page token that isn't from an answer to the same filter: begin again", _LIST)
def _bad_token(session: Session) -> None:
    for token in ("x", "AAAA", "6f9619ff-8b86-4d01-b42d-00cf4fc964ff", "\u00e9"):
        with refused(f"the page token {token!r}", "INVALID_ARGUMENT", "INVALID_FIELD") as caught:
            session.call("ListEndpoints", ListEndpointsRequest(filter=session.filter, page_token=token))
        error = caught.error
        fields = [field for field, _ in error.violations] if isinstance(error, InvalidArgument) else []
        expect("fields that the BadRequest names", fields, ["page_token"])


@check("list.token-of-another-filter-refused", "a page token that isn't from an answer to the same filter: begin again", _LIST)
def _token_of_another_filter(session: Session) -> None:
    for _ in range(2):
        session.make()
    token = session.call("ListEndpoints", ListEndpointsRequest(filter=session.filter, page_size=1)).next_page_token
    expect_true("next_page_token", token, condition=bool(token), expected="a token")
    other = EndpointFilter(labels=session.labels, network=session.network.name)
    with refused("a page token with another filter", "INVALID_ARGUMENT", "INVALID_FIELD"):
        session.call("ListEndpoints", ListEndpointsRequest(filter=other, page_token=token))


@check("list.filters", "those that match every field that is set", _FILTER)
def _filters(session: Session) -> None:
    instance = Instance(uuid=session.new_id())
    one = session.make(labels={"a": "1", "b": "1"}, instance=instance)
    two = session.make(labels={"a": "1"})
    found = {
        "labels": (EndpointFilter(labels=session.labels | {"a": "1"}), [one, two]),
        "two labels": (EndpointFilter(labels=session.labels | {"a": "1", "b": "1"}), [one]),
        "a label with another value": (EndpointFilter(labels=session.labels | {"a": "2"}), []),
        "instance_uuid": (EndpointFilter(instance_uuid=instance.uuid), [one]),
        "network": (EndpointFilter(labels=session.labels, network=session.network.name), [one, two]),
        "another network": (EndpointFilter(labels=session.labels, network="vif-sanity-none"), []),
        "labels and instance_uuid": (EndpointFilter(labels=session.labels | {"b": "2"}, instance_uuid=instance.uuid), []),
    }
    for what, (where, expected) in found.items():
        ids = [endpoint.endpoint_id for endpoint in session.listed(where)]
        expect(f"the list by {what}", ids, sorted(endpoint.endpoint_id for endpoint in expected))


@check(
    "list.malformed-filter-refused",
    "1 to 63 characters, a-z, 0-9, '.', '_', '-', first a letter or digit",
    f"{_SERVICE}RequestEndpointRequest",
)
def _malformed_filter(session: Session) -> None:
    with refused("a filter with a wrong network", "INVALID_ARGUMENT", "INVALID_FIELD"):
        session.listed(EndpointFilter(network="../blue"))
