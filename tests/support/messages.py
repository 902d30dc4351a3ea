"""Messages of the API, as good callers and bad ones send them."""

from __future__ import annotations

from typing import Any

from google.protobuf import text_format

from vif.v1 import endpoint_service_pb2 as pb

ID = "11111111-2222-4333-8444-555555555555"


def endpoint_id(number: int) -> str:
    """Give one of many ids; their order is that of the numbers."""
    return f"00000000-0000-4000-8000-{number:012x}"


def request(text: str = "acceptable { tap {} }", **fields: Any) -> pb.RequestEndpointRequest:
    """Give a good request for a tap on network blue, with what protobuf's text format and the fields say instead."""
    message = pb.RequestEndpointRequest(endpoint_id=ID, network="blue")
    text_format.Parse(text, message)
    for name, value in fields.items():
        setattr(message, name, value)
    return message


def batch(*requests: pb.RequestEndpointRequest) -> pb.BatchRequestEndpointsRequest:
    """Give requests as one."""
    return pb.BatchRequestEndpointsRequest(requests=requests)


def with_unknown_field(message: Any) -> Any:
    """Give a message of a newer API: with a field that this vifd doesn't know."""
    return type(message).FromString(message.SerializeToString() + b"\xa2\x7d\x01x")  # field 2004, a string
