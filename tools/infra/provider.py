"""Stands in for the AWS provider: answers Terraform from the schema alone, over the plugin protocol, version 6.

It knows which types, arguments and attributes there are. It plans every resource as a new one, with what AWS would
say left unknown, and reads data sources as some account would answer. It keeps nothing and changes nothing, so
`apply` without a mock is refused.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import grpc
import msgpack
from tf.gen import tfplugin_pb2 as protocol

from tools.infra.answers import ACCOUNT, Answers
from tools.infra.schema import Schema, is_write_only

__all__ = ["ADDRESS", "serving"]

ADDRESS: Final = "registry.terraform.io/hashicorp/aws"

_SERVICE: Final = "tfplugin6.Provider"
_PROTOCOL: Final = 6
_THREADS: Final = 8
_LARGEST: Final = 256 << 20
_UNKNOWN: Final = msgpack.ExtType(0, b"\0")
_REGION: Final = "eu-central-1"


class _Provider:
    def __init__(self, schema: Schema, *, answered: bool) -> None:
        self._schema = schema
        self._answered = answered
        self._message = schema.message()
        self._region = _REGION

    def get_provider_schema(self, request: Any) -> Any:
        return self._message

    def validate_provider_config(self, request: Any) -> Any:
        return protocol.ValidateProviderConfig.Response()

    def validate_resource_config(self, request: Any) -> Any:
        block, given = self._schema.resources[request.type_name], _unpack(request.config)
        problems = [*_read_only(block, given), *_halves(block, given)]
        return protocol.ValidateResourceConfig.Response(diagnostics=problems)

    def validate_data_resource_config(self, request: Any) -> Any:
        problems = _read_only(self._schema.data[request.type_name], _unpack(request.config))
        return protocol.ValidateDataResourceConfig.Response(diagnostics=problems)

    def configure_provider(self, request: Any) -> Any:
        region = _unpack(request.config)["region"]
        if isinstance(region, str):
            self._region = region
        return protocol.ConfigureProvider.Response()

    def plan_resource_change(self, request: Any) -> Any:
        planned = _unpack(request.proposed_new_state)
        if planned is not None:
            block = self._schema.resources[request.type_name]
            planned |= {name: None for name in block["attributes"] if is_write_only(name)}
            unknown: Callable[[str, Any], Any] = lambda _name, _kind: _UNKNOWN  # noqa: E731
            _fill(block, planned, Answers(request.type_name, planned, self._region) if self._answered else unknown)
        return protocol.PlanResourceChange.Response(planned_state=_pack(planned))

    def apply_resource_change(self, request: Any) -> Any:
        problem = protocol.Diagnostic(
            severity=protocol.Diagnostic.ERROR,
            summary="Nothing to apply to",
            detail='This stands in for the AWS provider and only plans. In a test, use mock_provider "aws" {}.',
        )
        return protocol.ApplyResourceChange.Response(new_state=request.prior_state, diagnostics=[problem])

    def read_data_source(self, request: Any) -> Any:
        state = _unpack(request.config)
        known = self._known().get(request.type_name, {})
        _fill(self._schema.data[request.type_name], state, lambda name, kind: known.get(name, _example(name, kind)))
        return protocol.ReadDataSource.Response(state=_pack(state))

    def stop_provider(self, request: Any) -> Any:
        return protocol.StopProvider.Response()

    def _known(self) -> Mapping[str, Mapping[str, Any]]:
        zones = [self._region + letter for letter in "abc"]
        return {
            "aws_availability_zones": {"names": zones, "zone_ids": [f"id-{zone}" for zone in zones]},
            "aws_caller_identity": {"account_id": ACCOUNT, "arn": f"arn:aws:iam::{ACCOUNT}:user/someone"},
            "aws_partition": {"partition": "aws", "dns_suffix": "amazonaws.com"},
            "aws_region": {"region": self._region, "name": self._region, "id": self._region},
        }

    def handlers(self) -> Any:
        calls: dict[str, tuple[Callable[[Any], Any], Any]] = {
            "GetProviderSchema": (self.get_provider_schema, protocol.GetProviderSchema),
            "ValidateProviderConfig": (self.validate_provider_config, protocol.ValidateProviderConfig),
            "ValidateResourceConfig": (self.validate_resource_config, protocol.ValidateResourceConfig),
            "ValidateDataResourceConfig": (self.validate_data_resource_config, protocol.ValidateDataResourceConfig),
            "ConfigureProvider": (self.configure_provider, protocol.ConfigureProvider),
            "PlanResourceChange": (self.plan_resource_change, protocol.PlanResourceChange),
            "ApplyResourceChange": (self.apply_resource_change, protocol.ApplyResourceChange),
            "ReadDataSource": (self.read_data_source, protocol.ReadDataSource),
            "StopProvider": (self.stop_provider, protocol.StopProvider),
        }
        return grpc.method_handlers_generic_handler(
            _SERVICE,
            {
                name: grpc.unary_unary_rpc_method_handler(
                    _without_context(call),
                    request_deserializer=message.Request.FromString,
                    response_serializer=message.Response.SerializeToString,
                )
                for name, (call, message) in calls.items()
            },
        )


def _without_context(call: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
    return lambda request, _context: call(request)


def _unpack(value: Any) -> Any:
    return msgpack.unpackb(value.msgpack, strict_map_key=False)


def _pack(value: Any) -> Any:
    return protocol.DynamicValue(msgpack=msgpack.packb(value))


def _read_only(block: Mapping[str, Any], value: Mapping[str, Any]) -> list[Any]:
    """What is wrong with giving a value to what only AWS can say; Terraform leaves this question to the provider."""
    problems = [
        protocol.Diagnostic(
            severity=protocol.Diagnostic.ERROR,
            summary="Read-only attribute",
            detail=f'"{name}" can\'t be given: it is what AWS answers.',
            attribute=protocol.AttributePath(steps=[protocol.AttributePath.Step(attribute_name=name)]),
        )
        for name, attribute in block["attributes"].items()
        if attribute["flags"] == "c" and value.get(name) is not None
    ]
    for name, nested in block["blocks"].items():
        for inside in _values(value.get(name), several=nested["nesting"] == "map"):
            problems += _read_only(nested["block"], inside)
    return problems


def _halves(block: Mapping[str, Any], value: Mapping[str, Any]) -> list[Any]:
    """What is wrong with a write-only argument without its version, or the other way round."""
    pairs = ((name, f"{name}_version") for name in block["attributes"] if is_write_only(name))
    return [
        protocol.Diagnostic(
            severity=protocol.Diagnostic.ERROR,
            summary="Missing required argument",
            detail=f'"{name}" and "{version}" have to be given together.',
            attribute=protocol.AttributePath(steps=[protocol.AttributePath.Step(attribute_name=name)]),
        )
        for name, version in pairs
        if version in block["attributes"] and (value.get(name) is None) != (value.get(version) is None)
    ]


def _fill(block: Mapping[str, Any], value: dict[str, Any], answer: Callable[[str, Any], Any]) -> None:
    """Puts an answer wherever the provider would compute one."""
    for name, attribute in block["attributes"].items():
        if value.get(name) is None and "c" in attribute["flags"]:
            value[name] = answer(name, attribute["type"])
    for name, nested in block["blocks"].items():
        for inside in _values(value.get(name), several=nested["nesting"] == "map"):
            _fill(nested["block"], inside, answer)


def _values(value: Any, *, several: bool) -> list[dict[str, Any]]:
    if isinstance(value, dict):
        return list(value.values()) if several else [value]
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _example(name: str, kind: Any) -> Any:
    """Some value of a type, always the same."""
    if isinstance(kind, str):
        return {"string": f"some-{name}", "number": 0, "bool": False}.get(kind)
    if kind[0] == "object":
        return {inner: _example(inner, of) for inner, of in kind[1].items()}
    return {} if kind[0] == "map" else []


@contextmanager
def serving(schema: Schema, directory: Path, *, answered: bool = False) -> Iterator[str]:
    """Serves on a socket in `directory`; gives what TF_REATTACH_PROVIDERS has to say. `answered`: plans know what AWS
    would say, instead of leaving it unknown."""
    socket = directory / "provider.sock"
    server = grpc.server(
        ThreadPoolExecutor(max_workers=_THREADS),
        options=[("grpc.max_send_message_length", _LARGEST), ("grpc.max_receive_message_length", _LARGEST)],
    )
    server.add_generic_rpc_handlers((_Provider(schema, answered=answered).handlers(),))
    server.add_insecure_port(f"unix:{socket}")
    server.start()
    try:
        yield json.dumps(
            {
                ADDRESS: {
                    "Protocol": "grpc",
                    "ProtocolVersion": _PROTOCOL,
                    "Pid": os.getpid(),
                    "Test": True,
                    "Addr": {"Network": "unix", "String": str(socket)},
                }
            }
        )
    finally:
        server.stop(None).wait()
