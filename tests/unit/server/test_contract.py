"""That what the contract promises is served, and nothing is forgotten."""

import inspect
from typing import Any

import pytest
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

from tests.support.configs import parse
from vif.v1 import endpoint_pb2, endpoint_service_pb2, error_pb2, fd_pb2, host_service_pb2
from vifd import model
from vifd.server import app
from vifd.server.services import EndpointService, HostService

SERVICERS: dict[str, type] = {"EndpointService": EndpointService, "HostService": HostService}
FILES = (endpoint_pb2, endpoint_service_pb2, error_pb2, fd_pb2, host_service_pb2)
SERVICES: list[ServiceDescriptor] = [service for file in FILES for service in file.DESCRIPTOR.services_by_name.values()]
METHODS: list[MethodDescriptor] = [method for service in SERVICES for method in service.methods]


def test_every_service_of_the_contract_has_a_servicer() -> None:
    assert sorted(service.name for service in SERVICES) == sorted(SERVICERS)


def test_every_service_of_the_contract_is_reflected_and_has_a_health() -> None:
    assert sorted(app._SERVICES) == sorted(service.full_name for service in SERVICES)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.full_name)
def test_every_rpc_is_written_by_hand(method: MethodDescriptor) -> None:
    assert method.name in vars(SERVICERS[method.containing_service.name])


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.full_name)
def test_every_rpc_streams_as_the_contract_says(method: MethodDescriptor) -> None:
    handler = vars(SERVICERS[method.containing_service.name])[method.name]
    assert inspect.isasyncgenfunction(handler) is method.server_streaming
    assert not method.client_streaming


@pytest.mark.parametrize("servicer", SERVICERS.values())
def test_no_servicer_has_an_rpc_that_the_contract_hasnt(servicer: type) -> None:
    named = {name for name in vars(servicer) if name[0].isupper()}
    assert named == {method.name for method in METHODS if SERVICERS[method.containing_service.name] is servicer}


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.full_name)
def test_every_rpc_has_messages_of_its_own(method: MethodDescriptor) -> None:
    assert (method.input_type.name, method.output_type.name) == (f"{method.name}Request", f"{method.name}Response")


def test_every_kind_of_preference_is_one_of_the_models() -> None:
    oneof = endpoint_service_pb2.EndpointPreference.DESCRIPTOR.oneofs_by_name["kind"]
    assert [field.name for field in oneof.fields] == list(model.Kind)


def test_every_kind_can_be_named_in_a_policy() -> None:
    (rule,) = parse(f"[[policy]]\nuid = 1\nkinds = {[str(kind) for kind in model.Kind]}").policy
    assert list(rule.kinds) == list(model.Kind)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.DESCRIPTOR.name)
def test_the_contract_is_one_package(file: Any) -> None:
    assert file.DESCRIPTOR.package == "vif.v1"


@pytest.mark.parametrize("enum", [e for file in FILES for e in file.DESCRIPTOR.enum_types_by_name.values()], ids=lambda e: e.name)
def test_zero_of_every_enum_says_nothing(enum: Any) -> None:
    assert enum.values_by_number[0].name.endswith("_UNSPECIFIED")
