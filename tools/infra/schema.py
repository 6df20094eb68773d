"""The provider's schema as `extract.py` wrote it, and its form in Terraform's plugin protocol."""

from __future__ import annotations

import json
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tf.gen import tfplugin_pb2 as protocol

__all__ = ["Schema", "is_write_only"]

Json = Mapping[str, Any]

_NESTING: Final = {"single": "SINGLE", "list": "LIST", "set": "SET", "map": "MAP"}
_WRITE_ONLY: Final = "_wo"
"""How the provider names what goes to AWS and is kept in no state."""
_WRITE_ONLY_FIELD: Final = b"\x58\x01"
"""`write_only = 11` of the protocol, set: the stubs are of an older version, and pass on what they do not know."""


@dataclass(frozen=True, kw_only=True)
class Schema:
    """Types of resources and data sources, each with its block, and the provider's own block."""

    resources: Mapping[str, Json]
    data: Mapping[str, Json]
    provider: Json

    @classmethod
    def load(cls, path: Path, words: Set[str]) -> Schema:
        """What a configuration made of these words can use: Terraform takes long to read the rest, for nothing."""
        content = json.loads(path.read_text(encoding="utf-8"))
        resources, data = (
            {name: _usable(block, words) for name, block in content[kind].items() if name in words}
            for kind in ("resources", "data")
        )
        return cls(resources=resources, data=data, provider=content["provider"])

    def message(self) -> Any:
        """The answer to GetProviderSchema."""
        return protocol.GetProviderSchema.Response(
            provider=_schema(self.provider),
            resource_schemas={name: _schema(block) for name, block in self.resources.items()},
            data_source_schemas={name: _schema(block) for name, block in self.data.items()},
            server_capabilities=protocol.ServerCapabilities(get_provider_schema_optional=True),
        )


def _usable(block: Json, words: Set[str], *, inside: bool = False) -> Json:
    """Without the blocks, inside of blocks, that are named nowhere: those of a firewall are thousands."""
    blocks = {
        name: {**nested, "block": _usable(nested["block"], words, inside=True)}
        for name, nested in block["blocks"].items()
        if not inside or nested["min"] or name in words
    }
    return {**block, "blocks": blocks}


def _schema(block: Json) -> Any:
    return protocol.Schema(version=0, block=_block(block))


def _block(block: Json) -> Any:
    return protocol.Schema.Block(
        attributes=[_attribute(name, attribute) for name, attribute in block["attributes"].items()],
        block_types=[
            protocol.Schema.NestedBlock(
                type_name=name,
                nesting=_NESTING[nested["nesting"]],
                min_items=nested["min"],
                max_items=nested["max"],
                block=_block(nested["block"]),
            )
            for name, nested in block["blocks"].items()
        ],
    )


def _attribute(name: str, attribute: Json) -> Any:
    flags = attribute["flags"]
    made = protocol.Schema.Attribute(
        name=name,
        type=json.dumps(attribute["type"]).encode(),
        required="r" in flags,
        optional="o" in flags,
        computed="c" in flags,
    )
    if is_write_only(name):
        made.MergeFromString(_WRITE_ONLY_FIELD)
    return made


def is_write_only(name: str) -> bool:
    """Whether an attribute goes to AWS alone, and into no plan or state."""
    return name.endswith(_WRITE_ONLY) and not name.startswith("has_")
