from collections.abc import Callable

import pytest

from tests.support.messages import ID, batch, endpoint_id, request, with_unknown_field
from vif.v1 import endpoint_service_pb2 as pb
from vifd import model
from vifd.errors import InvalidRequest
from vifd.server import requests

CALLER = model.Caller(1000, 1001, frozenset({1001, 36}))


def parse(message: pb.RequestEndpointRequest) -> model.EndpointRequest:
    return requests.endpoint_request(message, CALLER)


def violations(check: Callable[[], object]) -> dict[str, str]:
    with pytest.raises(InvalidRequest) as caught:
        check()
    return dict(caught.value.violations)


def wrong(text: str = "acceptable { tap {} }", **fields: object) -> list[str]:
    return list(violations(lambda: parse(request(text, **fields))))


def test_a_small_request_is_filled_in_with_the_defaults() -> None:
    parsed = parse(request())
    assert parsed.endpoint_id == ID
    assert parsed.validate_only is False
    assert parsed.spec == model.EndpointSpec("blue", (model.TapPreference(1, vnet_hdr=True),), model.Owner(1000, None))


def test_everything_that_a_request_can_say_is_taken() -> None:
    text = """
        acceptable { vdpa { queues: 2 } }
        acceptable { vhost_user { hypervisor_role: VHOST_USER_ROLE_CLIENT queues: 3 } }
        acceptable { ovs_port {} }
        acceptable { pci { host_driver: PCI_HOST_DRIVER_KERNEL } }
        acceptable { macvtap { mode: MACVTAP_MODE_VEPA queues: 4 vnet_hdr: false } }
        acceptable { tap { queues: 256 vnet_hdr: false } }
        acceptable { bridge {} }
        port { mac: "52:54:00:AB:cd:ef" mtu_bytes: 9000 addresses: ["10.0.0.2", "fd00::/64"] tx_queue_length: 500
               public_addresses: ["203.0.113.9"] trusted: true
               vlan { trunk_vids: [1, 4094] native_vid: 7 }
               guard { enabled: true } isolated: true link_up: false
               limits { from_vm { rate_bps: 1 burst_bytes: 9000 rate_pps: 3 } to_vm { rate_bps: 4 } } }
        instance { uuid: "aaaaaaaa-2222-4333-8444-555555555555" name: "vm one" numa_node: 1 }
        labels { key: "app.io/role" value: "Datenbank-Größe" }
        owner { uid: 7 gid: 8 }
        port_id: "port-1"
        require { live_migratable: true }
        lifetime { until_released {} }
        validate_only: true
    """
    parsed = parse(request(text))
    assert parsed.validate_only is True
    assert parsed.spec == model.EndpointSpec(
        network="blue",
        acceptable=(
            model.VdpaPreference(2),
            model.VhostUserPreference(model.VhostUserRole.CLIENT, 3),
            model.OvsPortPreference(),
            model.PciPreference(model.PciHostDriver.KERNEL),
            model.MacvtapPreference(model.MacvtapMode.VEPA, 4, vnet_hdr=False),
            model.TapPreference(256, vnet_hdr=False),
            model.BridgePreference(),
        ),
        owner=model.Owner(7, 8),
        port=model.Port(
            mac="52:54:00:ab:cd:ef",
            mtu_bytes=9000,
            addresses=("10.0.0.2", "fd00::/64"),
            vlan=model.Vlan(0, (1, 4094), 7),
            guard_enabled=True,
            limits=model.Limits(model.RateLimit(1, 9000, 3), model.RateLimit(4)),
            isolated=True,
            link_up=False,
            tx_queue_length=500,
            public_addresses=("203.0.113.9",),
            trusted=True,
        ),
        instance=model.Instance("aaaaaaaa-2222-4333-8444-555555555555", "vm one", 1),
        labels={"app.io/role": "Datenbank-Größe"},
        port_id="port-1",
        live_migratable=True,
    )


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "x",
        ID.replace("1", "A"),
        ID.replace("-", ""),
        f"{{{ID}}}",
        f"{ID}\n",
        f" {ID}",
        ID[:-1],
        "../../etc/passwd",
        "a\0b",
        "00000000-0000-0000-0000-000000000000",
        "x" * 65536,
    ],
)
def test_what_is_no_canonical_uuid_is_no_endpoint_id(bad: str) -> None:
    assert wrong(endpoint_id=bad) == ["endpoint_id"]


@pytest.mark.parametrize("bad", ["", "Blue", "../blue", "blue\0", "blue\n", "%d ", "a" * 64, "-blue", ".blue", "blue net", "é"])
def test_what_can_name_no_network_is_a_violation(bad: str) -> None:
    assert wrong(network=bad) == ["network"]


@pytest.mark.parametrize("bad", ["a b", "a\n", "é", "\0", "x" * 256])
def test_a_port_id_that_is_no_printable_ascii_is_a_violation(bad: str) -> None:
    assert wrong(port_id=bad) == ["port_id"]


@pytest.mark.parametrize("bad", ["x", ID.replace("1", "A"), f"{ID}\n", "00000000-0000-0000-0000-000000000000"])
def test_an_instance_uuid_that_is_no_canonical_uuid_is_a_violation(bad: str) -> None:
    message = request()
    message.instance.uuid = bad
    assert list(violations(lambda: parse(message))) == ["instance.uuid"]


@pytest.mark.parametrize("bad", ["x" * 256, "é" * 128, "a\nb", "a\0", "\x1b[31m", "\x7f", "\x85", "\u2028"])
def test_a_name_that_is_too_long_or_has_control_characters_is_a_violation(bad: str) -> None:
    message = request()
    message.instance.name = bad
    assert list(violations(lambda: parse(message))) == ["instance.name"]


@pytest.mark.parametrize("key", ["", "a" * 64, "a b", "ä", "a\n", "%d", "a\0"])
def test_a_bad_key_of_a_label_is_a_violation(key: str) -> None:
    message = request()
    message.labels[key] = "x"
    assert list(violations(lambda: parse(message))) == [f"labels[{key[:63]!r}]"]


@pytest.mark.parametrize("value", ["x" * 256, "x" * 65536, "a\nb", "\0"])
def test_a_bad_value_of_a_label_is_a_violation(value: str) -> None:
    message = request()
    message.labels["a"] = value
    assert list(violations(lambda: parse(message))) == ["labels['a']"]


def test_thirty_two_labels_are_taken_and_one_more_is_a_violation() -> None:
    message = request()
    message.labels.update({f"k{i}": "v" for i in range(32)})
    assert len(parse(message).spec.labels) == 32
    message.labels["one-more"] = "v"
    assert violations(lambda: parse(message)) == {"labels": "has more than 32 labels"}


@pytest.mark.parametrize("field", ["uid", "gid"])
def test_the_id_that_the_kernel_takes_for_nobody_is_no_owner(field: str) -> None:
    assert wrong(f"acceptable {{ tap {{}} }} owner {{ {field}: 4294967295 }}") == [f"owner.{field}"]


def test_an_owner_without_a_uid_is_the_caller() -> None:
    assert parse(request("acceptable { tap {} } owner { gid: 36 }")).spec.owner == model.Owner(1000, 36)


@pytest.mark.parametrize(
    ("text", "lifetime"),
    [
        ("", None),
        ("lifetime {}", None),
        ("lifetime { until_released {} }", None),
        ("lifetime { process {} }", model.ProcessLifetime(0)),
        ("lifetime { process { pid: 4194304 } }", model.ProcessLifetime(1 << 22)),
        ("lifetime { lease { ttl { seconds: 1 } } }", model.LeaseLifetime(1_000_000_000)),
        ("lifetime { lease { ttl { seconds: 1 nanos: 5 } } }", model.LeaseLifetime(1_000_000_005)),
        ("lifetime { lease { ttl { seconds: 31622400 } } }", model.LeaseLifetime(366 * 86_400_000_000_000)),
    ],
)
def test_a_lifetime_is_taken(text: str, lifetime: model.Lifetime | None) -> None:
    assert parse(request(f"acceptable {{ tap {{}} }} {text}")).spec.lifetime == lifetime


@pytest.mark.parametrize(
    ("until", "field"),
    [
        ("process { pid: 4194305 }", "process.pid"),
        ("lease {}", "lease.ttl"),
        ("lease { ttl { nanos: 999999999 } }", "lease.ttl"),
        ("lease { ttl { seconds: -5 } }", "lease.ttl"),
        ("lease { ttl { seconds: 2 nanos: -1 } }", "lease.ttl"),
        ("lease { ttl { seconds: 1 nanos: 1000000000 } }", "lease.ttl"),
        ("lease { ttl { seconds: 31622400 nanos: 1 } }", "lease.ttl"),
    ],
)
def test_a_lifetime_that_cant_be_is_a_violation(until: str, field: str) -> None:
    assert wrong(f"acceptable {{ tap {{}} }} lifetime {{ {until} }}") == [f"lifetime.{field}"]


def test_another_lifetime_is_another_spec() -> None:
    texts = [
        "",
        "lifetime { process {} }",
        "lifetime { lease { ttl { seconds: 5 } } }",
        "lifetime { lease { ttl { seconds: 6 } } }",
    ]
    assert len({parse(request(f"acceptable {{ tap {{}} }} {text}")).spec_hash for text in texts}) == len(texts)


def test_a_field_that_this_vifd_doesnt_know_is_a_violation() -> None:
    found = violations(lambda: parse(with_unknown_field(request())))
    assert list(found) == ["unknown_fields"]


def test_a_field_that_this_vifd_doesnt_know_is_found_deep_in_a_request() -> None:
    message = request()
    message.acceptable[0].tap.MergeFromString(b"\xa2\x7d\x01x")
    assert list(violations(lambda: parse(message))) == ["unknown_fields"]


def test_every_violation_is_listed_at_once() -> None:
    text = """
        acceptable { tap { queues: 257 } }
        acceptable { tap {} }
        acceptable {}
        acceptable { macvtap { mode: 99 } }
        port { mac: "01:00:00:00:00:00" mtu_bytes: 67 addresses: ["x"] vlan { vid: 4095 } }
        instance { uuid: "x" name: "\\n" }
        labels { key: "" value: "x" }
        owner { uid: 4294967295 gid: 4294967295 }
        port_id: " "
    """
    assert sorted(wrong(text, endpoint_id="", network="")) == [
        "acceptable[0].tap.queues",
        "acceptable[1]",
        "acceptable[2]",
        "acceptable[3].macvtap.mode",
        "endpoint_id",
        "instance.name",
        "instance.uuid",
        "labels['']",
        "network",
        "owner.gid",
        "owner.uid",
        "port.addresses[0]",
        "port.mac",
        "port.mtu_bytes",
        "port.vlan.vid",
        "port_id",
    ]


def test_the_same_request_has_the_same_hash() -> None:
    assert parse(request()).spec_hash == parse(request()).spec_hash


def test_another_spec_has_another_hash() -> None:
    assert parse(request()).spec_hash != parse(request("acceptable { tap { queues: 2 } }")).spec_hash


def test_a_request_has_the_hash_that_it_had_under_the_vifd_before() -> None:
    text = """
        acceptable { tap { queues: 2 } }
        port { mac: "52:54:00:12:34:56" vlan { vid: 7 } limits { from_vm { rate_bps: 5 } } }
        instance { name: "vm" }
    """
    assert parse(request(text)).spec_hash == "b2a89788fc56534c9330001582dab60eef4704b18ec75a34347bc842b7696679"


@pytest.mark.parametrize(
    "text",
    [
        "instance { numa_node: 0 }",
        "port { trusted: false }",
        "port { vlan { vid: 7 qos: 1 } }",
        "port { vlan { vid: 7 protocol: VLAN_PROTOCOL_DOT1AD } }",
        "port { limits { from_vm { min_rate_bps: 1 } } }",
    ],
)
def test_whatever_is_asked_for_is_part_of_the_hash(text: str) -> None:
    plain = {parse(request(f"acceptable {{ pci {{}} }} {other}")).spec_hash for other in ("", "port { vlan { vid: 7 } }")}
    assert parse(request(f"acceptable {{ pci {{}} }} {text}")).spec_hash not in plain


def test_the_order_of_labels_doesnt_change_the_hash() -> None:
    one, other = request(), request()
    for key in "abcdefgh":
        one.labels[key] = "x"
    for key in "hgfedcba":
        other.labels[key] = "x"
    assert parse(one).spec_hash == parse(other).spec_hash


def test_validate_only_isnt_part_of_the_hash() -> None:
    assert parse(request(validate_only=True)).spec_hash == parse(request()).spec_hash


def test_the_violations_of_a_batch_name_the_request() -> None:
    message = batch(request(), request(endpoint_id="x", network=""))
    assert list(violations(lambda: requests.batch_request(message, CALLER))) == ["requests[1].endpoint_id", "requests[1].network"]


def test_a_batch_gives_its_requests_in_order() -> None:
    message = batch(*(request(endpoint_id=endpoint_id(i)) for i in (3, 1, 2)))
    assert [r.endpoint_id[-1] for r in requests.batch_request(message, CALLER)] == ["3", "1", "2"]


def test_a_batch_with_one_id_twice_is_a_violation() -> None:
    assert violations(lambda: requests.batch_request(batch(request(), request()), CALLER)) == {
        "requests": "has the same endpoint_id twice"
    }


def test_a_batch_whose_requests_differ_in_validate_only_is_a_violation() -> None:
    message = batch(request(validate_only=True), request(endpoint_id=endpoint_id(1)))
    assert violations(lambda: requests.batch_request(message, CALLER)) == {"requests": "differ in validate_only"}


@pytest.mark.parametrize("count", [0, 65, 500_000])
def test_a_batch_of_none_or_too_many_is_a_violation(count: int) -> None:
    message = pb.BatchRequestEndpointsRequest.FromString(b"\x0a\x00" * count)
    assert violations(lambda: requests.batch_request(message, CALLER)) == {
        "requests": f"has {count} requests; 1 to 64 are allowed"
    }


def test_an_empty_message_is_full_of_violations_and_nothing_worse() -> None:
    assert list(violations(lambda: parse(pb.RequestEndpointRequest()))) == ["endpoint_id", "network", "acceptable"]
