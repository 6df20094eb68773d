"""Finds SQL that is built from strings. `make test` runs it over src/ (tests/checks/test_sql.py).

usage: check_sql.py [DIRECTORY]

What a statement may be made of: literals, constants of modules, names that `quoted` has seen, and whole numbers written
with `:d`. Everything is judged by its syntax tree: where a name comes from is followed through assignments,
comprehensions, private functions and imports inside the package. Two things are findings: text that reads as SQL and is
made of anything else, and anything else that is handed to a database. What can't be followed is a finding too, unless
`ALLOWED` says why it is fine; an allowance that nothing needs is a finding as well.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Final, TypeAlias

__all__ = ["ALLOWED", "Finding", "check", "main"]

ALLOWED: Final[dict[tuple[str, str], str]] = {
    ("kiseki/clients/postgres_migrations.py", "migrate"): "migrations are constants of the stores that call it",
    ("kiseki/query/batch.py", "Changes._run"): "a projection's own statements, objects of SQLAlchemy",
    ("kiseki/query/postgres/vacuum.py", "Scrubber._vacuum"): "names that the server has quoted itself (format %I.%I)",
    ("kiseki/query/postgres/vacuum.py", "analyze"): "names that the server has quoted itself (format %I.%I)",
    ("kiseki/testing/projections.py", "Following.given"): "a projection's own statements, objects of SQLAlchemy",
}
"""Path below the directory and function: why what is there is fine."""

_DRIVER_CALLS: Final = frozenset(
    {"execute", "executemany", "executescript", "exec_driver_sql", "fetch", "fetchval", "fetchrow", "scalar", "scalars"}
)
"""Methods whose first argument a database runs."""
_PERHAPS_DRIVER_CALLS: Final = frozenset({"prepare", "cursor", "copy_from_query", "stream"})
"""The same, but other things have methods of this name: only text that was built counts."""
_SQLALCHEMY_TEXT: Final = frozenset({"text", "literal_column", "DDL", "TextClause", "column", "table"})
"""Names of SQLAlchemy that take SQL, or what goes into it unquoted."""
_VETTED: Final = frozenset({("kiseki.clients.postgres", "quoted")})
"""Functions, with their modules, that refuse what is not a plain name."""
_KEEPING: Final = frozenset(
    {"strip", "lstrip", "rstrip", "removeprefix", "removesuffix", "split", "splitlines", "lower"}
)
"""Methods of a text that give parts of it."""
_BUILDING: Final = frozenset({"format", "join", "replace", "format_map"})
_FIRST_WORDS: Final[dict[str, frozenset[str] | None]] = {
    "SELECT": None,
    "INSERT": frozenset({"INTO", "OR"}),
    "REPLACE": frozenset({"INTO"}),
    "UPDATE": None,
    "DELETE": frozenset({"FROM"}),
    "MERGE": frozenset({"INTO"}),
    "WITH": None,
    "CREATE": frozenset({"TABLE", "INDEX", "UNIQUE", "SCHEMA", "DATABASE", "VIEW", "TEMP", "ROLE", "USER", "TRIGGER"}),
    "DROP": frozenset({"TABLE", "INDEX", "SCHEMA", "DATABASE", "VIEW", "ROLE", "USER", "TRIGGER"}),
    "ALTER": frozenset({"TABLE", "INDEX", "SCHEMA", "DATABASE", "ROLE", "USER", "SYSTEM"}),
    "TRUNCATE": None,
    "LOCK": frozenset({"TABLE"}),
    "PRAGMA": None,
    "ATTACH": None,
    "DETACH": None,
    "VACUUM": None,
    "ANALYZE": None,
    "GRANT": None,
    "REVOKE": None,
    "LISTEN": None,
    "NOTIFY": None,
    "COPY": None,
    "SET": frozenset({"LOCAL", "SESSION", "ROLE"}),
}
"""Words that begin a statement, and what may follow. In capitals alone they count whatever follows."""
_LATER_WORDS: Final = (" FROM ", " WHERE ", " VALUES ", " SET ", " INTO ", " ORDER BY ", " UNION ", " JOIN ")


class Kind(IntEnum):
    """What an expression is, the worst last."""

    SAFE = 0
    """Made of constants and vetted names, or no text at all."""
    UNKNOWN = 1
    """Can't be followed."""
    BUILT = 2
    """Text made of something that is not constant."""


@dataclass(frozen=True, order=True)
class Finding:
    """A place that is not fine."""

    path: str
    line: int
    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.what} (in {self.where})"


Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass
class _Module:
    """A file, with what is assigned, defined and imported in it."""

    path: str
    name: str
    tree: ast.Module
    constants: dict[str, list[ast.expr]] = field(default_factory=dict)
    functions: dict[str, list[Function]] = field(default_factory=dict)
    attributes: dict[str, list[tuple[ast.expr, Function | None]]] = field(default_factory=dict)
    """By class and name, as `Class.name`: what is assigned to it."""
    imports: dict[str, tuple[str, str]] = field(default_factory=dict)
    parents: dict[ast.AST, ast.AST] = field(default_factory=dict)
    uses: dict[str, list[ast.AST]] = field(default_factory=dict)
    """Where names are read, alone or behind a dot."""

    def enclosing(self, node: ast.AST, *kinds: type[ast.AST]) -> ast.AST | None:
        """The nearest of these kinds around a node."""
        found = self.parents.get(node)
        while found is not None and not isinstance(found, kinds):
            found = self.parents.get(found)
        return found

    def where(self, node: ast.AST) -> str:
        """The functions and classes around a node, dotted."""
        names: list[str] = []
        found: ast.AST | None = node
        while found is not None:
            if isinstance(found, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names.append(found.name)
            found = self.parents.get(found)
        return ".".join(reversed(names)) or "module"


def _read(path: Path, root: Path) -> _Module:
    relative = path.relative_to(root)
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(relative))
    module = _Module(relative.as_posix(), ".".join(relative.with_suffix("").parts).removesuffix(".__init__"), tree)
    for node in ast.walk(tree):
        for child in ast.iter_child_nodes(node):
            module.parents[child] = node
        name = _named(node)
        if name is not None:
            module.uses.setdefault(name, []).append(node)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            for alias in node.names:
                module.imports[alias.asname or alias.name] = (node.module, alias.name)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                module.imports[alias.asname or alias.name.split(".")[0]] = (alias.name, "")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            module.functions.setdefault(node.name, []).append(node)
        elif isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
            _note_assignment(module, node)
    return module


def _note_assignment(module: _Module, node: ast.Assign | ast.AnnAssign | ast.AugAssign) -> None:
    value = node.value
    if value is None:
        return
    scope = module.enclosing(node, ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)
    for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
        if isinstance(target, ast.Name) and (scope is None or _is_global(scope, target.id)):
            module.constants.setdefault(target.id, []).append(value)
        elif isinstance(target, ast.Name) and isinstance(scope, ast.ClassDef):
            module.attributes.setdefault(f"{scope.name}.{target.id}", []).append((value, None))
        elif isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "self":
            around = module.enclosing(node, ast.ClassDef)
            function = scope if isinstance(scope, ast.FunctionDef | ast.AsyncFunctionDef) else None
            if isinstance(around, ast.ClassDef):
                module.attributes.setdefault(f"{around.name}.{target.attr}", []).append((value, function))


def _is_global(scope: ast.AST, name: str) -> bool:
    return any(isinstance(node, ast.Global) and name in node.names for node in ast.walk(scope))


class _Judge:
    """Says what expressions are."""

    def __init__(self, modules: dict[str, _Module]) -> None:
        self._modules = modules
        self._deciding: set[tuple[str, int]] = set()

    def kind(self, module: _Module, node: ast.AST) -> Kind:
        """What it is."""
        key = (module.path, id(node))
        if key in self._deciding:
            return Kind.SAFE  # a name that is made of itself is as good as the rest of what it is made of
        self._deciding.add(key)
        try:
            return self._kind(module, node)
        finally:
            self._deciding.discard(key)

    def _worst(self, module: _Module, nodes: Sequence[ast.AST]) -> Kind:
        return max((self.kind(module, node) for node in nodes), default=Kind.SAFE)

    def _built_of(self, module: _Module, nodes: Sequence[ast.AST]) -> Kind:
        """Of a text that is put together: what can't be followed must not be in it."""
        return Kind.SAFE if self._worst(module, nodes) is Kind.SAFE else Kind.BUILT

    def _kind(self, module: _Module, node: ast.AST) -> Kind:
        match node:
            case ast.Constant():
                return Kind.SAFE
            case ast.JoinedStr(values=values):
                return self._built_of(module, values)
            case ast.FormattedValue(value=value, format_spec=spec):
                return Kind.SAFE if _is_number_format(spec) else self.kind(module, value)
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return self._built_of(module, [left, right])
            case ast.BinOp(left=left, op=ast.Mod(), right=right):
                return self._built_of(module, [left, right])
            case ast.BinOp(left=left, right=right):
                return self._worst(module, [left, right])
            case ast.IfExp(body=body, orelse=orelse):
                return self._worst(module, [body, orelse])
            case ast.BoolOp(values=values):
                return self._worst(module, values)
            case ast.Tuple(elts=parts) | ast.List(elts=parts) | ast.Set(elts=parts):
                return self._worst(module, parts)
            case ast.Starred(value=value) | ast.Await(value=value) | ast.NamedExpr(value=value):
                return self.kind(module, value)
            case ast.Dict(values=values):
                return self._worst(module, values)
            case ast.ListComp(elt=part) | ast.GeneratorExp(elt=part) | ast.SetComp(elt=part):
                return self.kind(module, part)
            case ast.Subscript(value=value):
                return self.kind(module, value)
            case ast.Name():
                return self._name(module, node)
            case ast.Attribute():
                return self._attribute(module, node)
            case ast.Call():
                return self._call(module, node)
        return Kind.UNKNOWN

    def _name(self, module: _Module, node: ast.Name) -> Kind:
        around: ast.AST | None = node
        while (around := module.parents.get(around)) is not None:  # type: ignore[arg-type]
            if isinstance(around, ast.ListComp | ast.GeneratorExp | ast.SetComp | ast.DictComp):
                for generator in around.generators:
                    if node.id in _names(generator.target):
                        return self._element(module, generator.target, generator.iter, node.id)
            elif isinstance(around, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                found = self._local(module, around, node.id)
                if found is not None:
                    return found
        if node.id in module.constants:
            return self._worst(module, module.constants[node.id])
        if node.id in module.imports:
            return self._imported(*module.imports[node.id])
        return Kind.UNKNOWN

    def _imported(self, origin: str, name: str) -> Kind:
        other = self._modules.get(origin)
        if other is not None and name in other.constants:
            return self._worst(other, other.constants[name])
        if other is not None and name in other.imports and other.imports[name] != (origin, name):
            return self._imported(*other.imports[name])
        return Kind.UNKNOWN

    def _local(self, module: _Module, function: Function | ast.Lambda, name: str) -> Kind | None:
        """A name inside a function; None when it is not one of its own."""
        if name in _parameters(function):
            return self._parameter(module, function, name)
        kinds: list[Kind] = []
        for node in _inside(function):
            if isinstance(node, ast.Assign):
                for target in node.targets:
                    if name in _names(target):
                        kinds.append(
                            self.kind(module, node.value)
                            if isinstance(target, ast.Name)
                            else self._element(module, target, node.value, name, unpacking=True)
                        )
            elif isinstance(node, ast.AnnAssign | ast.NamedExpr) and name in _names(node.target):
                kinds.append(Kind.SAFE if node.value is None else self.kind(module, node.value))
            elif isinstance(node, ast.AugAssign) and name in _names(node.target):
                kinds.append(self._built_of(module, [node.value]))
            elif isinstance(node, ast.For | ast.AsyncFor) and name in _names(node.target):
                kinds.append(self._element(module, node.target, node.iter, name))
            elif isinstance(node, ast.withitem) and node.optional_vars and name in _names(node.optional_vars):
                kinds.append(Kind.UNKNOWN)
        return max(kinds) if kinds else None

    def _parameter(self, module: _Module, function: Function | ast.Lambda, name: str) -> Kind:
        """A parameter: of a type of SQLAlchemy it is no text; of a private function it is what its module gives."""
        arguments = function.args
        places = [*arguments.posonlyargs, *arguments.args]
        for one in (*places, *arguments.kwonlyargs):
            if one.arg == name and one.annotation is not None and _sqlalchemy_names(module, one.annotation):
                return Kind.SAFE
        called = _called_as(module, function)
        if called is None:
            return Kind.UNKNOWN
        names = [one.arg for one in places]
        method = isinstance(module.parents.get(function), ast.ClassDef) and names[:1] in (["self"], ["cls"])
        given: list[ast.AST] = []
        for use in module.uses.get(called, ()):
            if _is_annotation(module, use):
                continue
            call = module.parents.get(use)
            if not isinstance(call, ast.Call) or call.func is not use:
                return Kind.UNKNOWN  # it is handed on, and called elsewhere
            position = names.index(name) - method if name in names else len(call.args)
            if any(isinstance(one, ast.Starred) for one in call.args[: position + 1]):
                return Kind.UNKNOWN
            given += call.args[position : position + 1]
            given += [keyword.value for keyword in call.keywords if keyword.arg == name]
            if any(keyword.arg is None for keyword in call.keywords):
                return Kind.UNKNOWN
        return self._worst(module, given) if given else Kind.UNKNOWN

    def _element(
        self, module: _Module, target: ast.expr, source: ast.expr, name: str, *, unpacking: bool = False
    ) -> Kind:
        """A name that is bound to elements of something, or to one of its parts."""
        counted = isinstance(source, ast.Call) and isinstance(source.func, ast.Name) and source.func.id == "enumerate"
        if counted and isinstance(target, ast.Tuple) and name in _names(target.elts[0]):
            return Kind.SAFE
        if unpacking and isinstance(target, ast.Tuple) and isinstance(source, ast.Tuple):
            for part, value in zip(target.elts, source.elts, strict=False):
                if name in _names(part):
                    return self.kind(module, value)
        if isinstance(source, ast.Call) and isinstance(source.func, ast.Name) and source.func.id in ("range", "count"):
            return Kind.SAFE
        return self.kind(module, source)

    def _attribute(self, module: _Module, node: ast.Attribute) -> Kind:
        if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
            around = module.enclosing(node, ast.ClassDef)
            if isinstance(around, ast.ClassDef):
                assigned = _assigned(module, around, node.attr)
                if assigned:
                    return self._worst(module, [value for value, _ in assigned])
        made = _class_of(module, node.value)
        values = [value for value, _ in module.attributes.get(f"{made}.{node.attr}", ())]
        return self._worst(module, values) if values else Kind.UNKNOWN

    def _call(self, module: _Module, node: ast.Call) -> Kind:
        function = node.func
        arguments = [*node.args, *(keyword.value for keyword in node.keywords)]
        if isinstance(function, ast.Name):
            origin = module.imports.get(function.id, (module.name, function.id))
            if origin in _VETTED or (function.id in ("int", "len") and function.id not in module.functions):
                return Kind.SAFE
            if module.imports.get(function.id, ("", ""))[0].split(".")[0] == "sqlalchemy":
                return Kind.SAFE  # a statement as an object; the calls that take text are looked at where they stand
            if function.id in ("sorted", "list", "tuple", "reversed", "enumerate", "zip", "cast"):
                return self._worst(module, arguments)
            if function.id in ("str", "repr", "ascii", "format"):
                return self._built_of(module, arguments)
            return self._returned(module, function.id)
        if isinstance(function, ast.Attribute):
            if self._is_statement(module, function.value):
                return Kind.SAFE
            if function.attr in _BUILDING:
                return self._built_of(module, [function.value, *arguments])
            if function.attr in _KEEPING:
                return self.kind(module, function.value)
            if isinstance(function.value, ast.Name) and function.value.id == "self":
                return self._returned(module, function.attr)
        return Kind.UNKNOWN

    def _is_statement(self, module: _Module, node: ast.AST) -> bool:
        """Whether it is a statement of SQLAlchemy, on which methods are called."""
        while isinstance(node, ast.Call | ast.Attribute):
            node = node.func if isinstance(node, ast.Call) else node.value
        if not isinstance(node, ast.Name):
            return False
        if module.imports.get(node.id, ("", ""))[0].split(".")[0] == "sqlalchemy":
            return True
        return any(
            isinstance(value, ast.Call) and self._is_statement(module, value)
            for value in module.constants.get(node.id, ())
        )

    def _returned(self, module: _Module, name: str) -> Kind:
        """What the functions of this name in the module return."""
        functions = module.functions.get(name)
        if not functions:
            return Kind.UNKNOWN
        values = [
            node.value
            for function in functions
            for node in _inside(function)
            if isinstance(node, ast.Return | ast.Yield) and node.value is not None
        ]
        return self._worst(module, values) if values else Kind.UNKNOWN


def _is_number_format(spec: ast.expr | None) -> bool:
    return (
        isinstance(spec, ast.JoinedStr)
        and len(spec.values) == 1
        and isinstance(spec.values[0], ast.Constant)
        and spec.values[0].value == "d"
    )


def _names(target: ast.AST) -> set[str]:
    return {node.id for node in ast.walk(target) if isinstance(node, ast.Name)}


def _called_as(module: _Module, function: Function | ast.Lambda) -> str | None:
    """The name by which a private function or class is called; None for what others may call."""
    if isinstance(function, ast.Lambda):
        return None
    around = module.parents.get(function)
    name = around.name if function.name == "__init__" and isinstance(around, ast.ClassDef) else function.name
    return name if name.startswith("_") and not name.startswith("__") else None


def _is_annotation(module: _Module, node: ast.AST) -> bool:
    parent = module.parents.get(node)
    return isinstance(parent, ast.arg) or (isinstance(parent, ast.AnnAssign) and parent.annotation is node)


def _assigned(module: _Module, around: ast.ClassDef, name: str) -> list[tuple[ast.expr, Function | None]]:
    """What is assigned to an attribute in a class, or in one of this module that it is made from."""
    found = list(module.attributes.get(f"{around.name}.{name}", ()))
    bases = {base.id for base in around.bases if isinstance(base, ast.Name)}
    for node in module.tree.body:
        if isinstance(node, ast.ClassDef) and node.name in bases and node is not around:
            found += _assigned(module, node, name)
    return found


def _class_of(module: _Module, node: ast.AST) -> str | None:
    """The class of this module that a value is of, where its annotation or its making says so."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return node.func.id
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
        around = module.enclosing(node, ast.ClassDef)
        values = _assigned(module, around, node.attr) if isinstance(around, ast.ClassDef) else []
        classes = {_class_of(module, value) for value, _ in values}
        return classes.pop() if len(classes) == 1 else None
    if isinstance(node, ast.Name):
        function = module.enclosing(node, ast.FunctionDef, ast.AsyncFunctionDef)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            for one in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs):
                if one.arg == node.id:
                    return one.annotation.id if isinstance(one.annotation, ast.Name) else None
        values = [(value, None) for value in module.constants.get(node.id, ())]
        classes = {_class_of(module, value) for value, _ in values}
        return classes.pop() if len(classes) == 1 else None
    return None


def _named(node: ast.AST) -> str | None:
    """The name that a use of a function has, on its own or behind a dot."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) else None


def _sqlalchemy_names(module: _Module, annotation: ast.expr) -> bool:
    """Whether a type is one of SQLAlchemy's and not a text as well."""
    if isinstance(annotation, ast.BinOp | ast.Constant):
        return False
    outer = annotation.value if isinstance(annotation, ast.Subscript) else annotation
    return isinstance(outer, ast.Name) and module.imports.get(outer.id, ("", ""))[0].split(".")[0] == "sqlalchemy"


def _parameters(function: Function | ast.Lambda) -> list[str]:
    arguments = function.args
    every = [*arguments.posonlyargs, *arguments.args, arguments.vararg, *arguments.kwonlyargs, arguments.kwarg]
    return [one.arg for one in every if one is not None]


def _inside(function: Function | ast.Lambda) -> Iterator[ast.AST]:
    """The nodes of a function without those of functions inside it."""
    body = function.body if isinstance(function.body, list) else [function.body]
    waiting: list[ast.AST] = list(body)
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            waiting.extend(ast.iter_child_nodes(node))


def _reads_as_sql(node: ast.AST) -> bool:
    """Whether the constant parts of a text begin as a statement does, or hold several of its words."""
    text = "".join(_constant_parts(node))
    words = text.split(None, 2)
    if not words:
        return False
    followers = _FIRST_WORDS.get(words[0].rstrip("({").upper(), frozenset())
    first = words[0].rstrip("({").isupper()
    second = words[1].upper() if len(words) > 1 else ""
    if first and words[0].rstrip("({") in _FIRST_WORDS and len(words[0]) > 2:
        if followers is None or second in followers or len(words) == 1:
            return True
    elif followers and second in followers:
        return True
    flat = f" {' '.join(text.split())} "
    lower = words[0].lower() in ("select", "update") and (" from " in flat.lower() or " set " in flat.lower())
    return lower or sum(word in flat for word in _LATER_WORDS) > 1


def _constant_parts(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Constant(value=str(text)):
            yield text
        case ast.JoinedStr(values=values):
            for value in values:
                yield from _constant_parts(value) if isinstance(value, ast.Constant) else (" {} ",)
        case ast.BinOp(left=left, right=right):
            yield from _constant_parts(left)
            yield from _constant_parts(right)
        case ast.Call(func=ast.Attribute(value=value, attr=attribute), args=arguments) if attribute in _BUILDING:
            for part in (value, *arguments):
                yield from _constant_parts(part)
        case ast.List(elts=parts) | ast.Tuple(elts=parts):
            for part in parts:
                yield from _constant_parts(part)
        case _:
            yield " {} "


def _is_building(node: ast.AST) -> bool:
    match node:
        case ast.JoinedStr() | ast.BinOp(op=ast.Add() | ast.Mod()):
            return True
        case ast.Call(func=ast.Attribute(attr=attribute)):
            return attribute in _BUILDING
    return False


def _handed_over(module: _Module, node: ast.Call) -> tuple[ast.expr, bool] | None:
    """What a call hands to a database, and whether it must be known; None when it hands over nothing."""
    function = node.func
    first = node.args[0] if node.args else None
    for keyword in node.keywords:
        if first is None and keyword.arg in ("statement", "sql", "query", "operation", "command"):
            first = keyword.value
    if first is not None and isinstance(function, ast.Attribute):
        if function.attr in _DRIVER_CALLS:
            return first, True
        if function.attr in _PERHAPS_DRIVER_CALLS:
            return first, False
        owner = function.value.id if isinstance(function.value, ast.Name) else ""
        if function.attr in _SQLALCHEMY_TEXT and module.imports.get(owner, ("", ""))[0].split(".")[0] == "sqlalchemy":
            return first, function.attr not in ("column", "table")
    if first is not None and isinstance(function, ast.Name):
        origin, name = module.imports.get(function.id, ("", ""))
        if origin.split(".")[0] == "sqlalchemy" and name in _SQLALCHEMY_TEXT:
            return first, name not in ("column", "table")
    return None


def check(root: Path, *, allowed: dict[tuple[str, str], str] | None = None) -> list[Finding]:
    """The findings in all Python files below a directory, in order."""
    allowances = ALLOWED if allowed is None else allowed
    modules = {module.name: module for module in (_read(path, root) for path in sorted(root.rglob("*.py")))}
    judge = _Judge(modules)
    found: set[Finding] = set()
    used: set[tuple[str, str]] = set()
    for module in modules.values():
        for finding in _look_at(module, judge):
            place = (finding.path, finding.where)
            if place in allowances:
                used.add(place)
            else:
                found.add(finding)
    for path, where in allowances.keys() - used:
        found.add(Finding(path, 0, where, "nothing needs this allowance any more"))
    return sorted(found)


def _look_at(module: _Module, judge: _Judge) -> Iterator[Finding]:
    for node in ast.walk(module.tree):
        whole = _is_building(node) and not _is_building_part(module, node)
        if whole and _reads_as_sql(node) and judge.kind(module, node) is not Kind.SAFE:
            yield Finding(module.path, getattr(node, "lineno", 0), module.where(node), "SQL is built from strings")
        if not isinstance(node, ast.Call):
            continue
        handed = _handed_over(module, node)
        if handed is None:
            continue
        kind = judge.kind(module, handed[0])
        if kind is Kind.BUILT:
            yield Finding(module.path, node.lineno, module.where(node), "a database runs text that is not constant")
        elif kind is Kind.UNKNOWN and handed[1]:
            yield Finding(module.path, node.lineno, module.where(node), "what a database runs can't be followed here")


def _is_building_part(module: _Module, node: ast.AST) -> bool:
    """Whether it is part of a larger text that is looked at as a whole."""
    parent = module.parents.get(node)
    return isinstance(parent, ast.BinOp) and _is_building(parent)


def main(arguments: Sequence[str]) -> int:
    """Prints the findings; 1 when there are any."""
    root = Path(arguments[0]) if arguments else Path(__file__).parents[1] / "src"
    findings = check(root)
    for finding in findings:
        print(finding)
    print(f"{len(findings)} findings in {root}" if findings else "no SQL is built from strings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
