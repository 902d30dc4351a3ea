import pytest

from tests.support.messages import batch, endpoint_id, request
from vif.v1 import endpoint_service_pb2 as pb
from vifd import model
from vifd.errors import InvalidRequest
from vifd.kernel.names import derived_mac
from vifd.server import requests

CALLER = model.Caller(1000, 1001)
ONE, TWO = endpoint_id(1), endpoint_id(2)
MAC = 'port { mac: "52:54:00:12:34:56" }'


def tap(partner: str = TWO, text: str = "", kinds: str = "acceptable { tap {} }") -> pb.RequestEndpointRequest:
    return request(f"{kinds} {text}", endpoint_id=ONE, partner_endpoint_id=partner)


def pci(partner: str = ONE, text: str = "", kinds: str = "acceptable { pci {} }") -> pb.RequestEndpointRequest:
    return request(f"{kinds} {text}", endpoint_id=TWO, network="fast", partner_endpoint_id=partner)


def wrong(*messages: pb.RequestEndpointRequest) -> list[str]:
    with pytest.raises(InvalidRequest) as caught:
        requests.batch_request(batch(*messages), CALLER)
    return [field for field, _ in caught.value.violations]


def test_the_parts_of_a_pair_name_each_other_and_have_one_mac() -> None:
    parts = requests.batch_request(batch(pci(), tap(), request(endpoint_id=endpoint_id(3))), CALLER)
    assert [part.spec.partner_endpoint_id for part in parts] == [ONE, TWO, ""]
    assert [part.spec.port.mac for part in parts] == [derived_mac(ONE), derived_mac(ONE), ""]


def test_the_mac_of_a_pair_may_be_the_callers() -> None:
    parts = requests.batch_request(batch(tap(text=MAC), pci(text=MAC)), CALLER)
    assert {part.spec.port.mac for part in parts} == {"52:54:00:12:34:56"}


def test_a_pair_has_the_same_hashes_each_time() -> None:
    first, again = (requests.batch_request(batch(tap(), pci()), CALLER) for _ in range(2))
    assert first == again
    alone = requests.batch_request(batch(tap("", MAC)), CALLER)
    assert alone[0].spec_hash != requests.batch_request(batch(tap(text=MAC), pci(text=MAC)), CALLER)[0].spec_hash


@pytest.mark.parametrize(
    ("messages", "fields"),
    [
        ([tap()], ["requests[0].partner_endpoint_id"]),
        ([tap(ONE)], ["requests[0].partner_endpoint_id", "requests[0].acceptable"]),
        ([tap(), pci("")], ["requests[0].partner_endpoint_id"]),
        ([tap(), pci("x")], ["requests[0].partner_endpoint_id", "requests[1].partner_endpoint_id"]),
        ([tap(text=MAC), pci()], ["requests[0].port.mac", "requests[1].port.mac"]),
        ([tap(text="owner { uid: 7 }"), pci()], ["requests[0].owner", "requests[1].owner"]),
        ([tap(), pci(kinds="acceptable { tap {} }")], ["requests[0].acceptable", "requests[1].acceptable"]),
        ([tap(kinds="acceptable { pci {} }"), pci()], ["requests[0].acceptable", "requests[1].acceptable"]),
        (
            [tap(kinds="acceptable { tap {} } acceptable { pci {} }"), pci()],
            ["requests[0].acceptable", "requests[1].acceptable"],
        ),
    ],
)
def test_what_is_no_pair_is_told(messages: list[pb.RequestEndpointRequest], fields: list[str]) -> None:
    assert wrong(*messages) == fields


def test_half_a_pair_is_nothing_to_ask_for() -> None:
    with pytest.raises(InvalidRequest) as caught:
        requests.endpoint_request(tap(), CALLER)
    assert [field for field, _ in caught.value.violations] == ["partner_endpoint_id"]
