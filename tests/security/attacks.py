"""Hostile requests to the two APIs, each with the answer that the wire contract has for it. Data only.

`test_attacks.py` sends them to a running server. Statuses and codes are those of the development profile; `production`
says where the production profile answers otherwise.
"""

# ruff: noqa: E501  # an attack is one line where it can be

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

JSON: Final = "application/json"
CREATE: Final = "mutation ($input: CreateUserAccountInput!) { createUserAccount(input: $input) { id } }"
SEARCH: Final = "query ($term: String!) { searchUserAccounts(searchTerm: $term) { id } }"
PERSON: Final = {"firstName": "Ada", "lastName": "Lovelace", "emailAddress": "ada@example.com"}


@dataclass(frozen=True, kw_only=True)
class Attack:
    """One request, and what has to come back."""

    name: str
    body: bytes
    status: int
    code: str | None = None
    """`code` of the problem or of the first error; None where the contract leaves it open, or nothing is wrong."""
    api: Literal["command", "query"] = "command"
    method: str = "POST"
    path: str = "/api/graphql"
    content_type: str | None = JSON
    headers: Mapping[str, str] = field(default_factory=dict)
    production: tuple[int, str] | None = None
    """Status and code of the production profile, if others."""
    seconds: float = 2.0
    """How long the answer may take."""


@dataclass(frozen=True, kw_only=True)
class RawAttack:
    """Bytes on a connection. The first answer has one of these statuses, or the connection ends without one (0)."""

    name: str
    sent: bytes
    statuses: frozenset[int]
    api: Literal["command", "query"] = "command"
    answers: int = 1
    """How many answers may come at most: a second one means that a smuggled request was served."""


def posted(query: object, variables: object = None, **more: object) -> bytes:
    """A body with this document; lone surrogates stay JSON escapes."""
    return json.dumps({"query": query, "variables": variables, **more}).encode()


def document(name: str, query: str, status: int, code: str | None, **more: Any) -> Attack:
    """An attack by a document alone."""
    return Attack(name=name, body=posted(query), status=status, code=code, **more)


def variables(name: str, given: object, status: int, code: str | None, **more: Any) -> Attack:
    """An attack by the variables of a creation."""
    return Attack(name=name, body=posted(CREATE, given), status=status, code=code, **more)


def value(name: str, given: object, status: int = 422, code: str = "INVALID_VARIABLES", **more: Any) -> Attack:
    """An attack by the value of a person's first name."""
    return variables(name, {"input": {**PERSON, "firstName": given}}, status, code, **more)


def text(name: str, given: str, code: str = "INVALID_INPUT") -> Attack:
    """A text that no name may be: well typed, so the document executes and the field fails."""
    return value(f"text: {name}", given, 200, code)


def body(name: str, sent: bytes, status: int = 400, code: str = "UNPARSABLE_JSON", **more: Any) -> Attack:
    """An attack by the bytes of the body."""
    return Attack(name=name, body=sent, status=status, code=code, **more)


def header(name: str, fields: Mapping[str, str], status: int, code: str | None, **more: Any) -> Attack:
    """A good creation with these header fields."""
    return Attack(name=name, body=posted(CREATE, {"input": PERSON}), status=status, code=code, headers=fields, **more)


def media(name: str, content_type: str | None, sent: bytes | None = None) -> Attack:
    """A good creation that says it is something else."""
    return Attack(
        name=f"media type: {name}",
        body=posted(CREATE, {"input": PERSON}) if sent is None else sent,
        content_type=content_type,
        status=415,
        code="UNSUPPORTED_MEDIA_TYPE",
    )


def _many(part: str, count: int, between: str = " ") -> str:
    return between.join(part.replace("#", str(number)) for number in range(count))


_DELETE: Final = 'deleteUserAccount(input: {userAccountId: "x"}) { id }'
_GET: Final = 'getUserAccount(userAccountId: "x") { id }'
_FIELDS: Final = "id firstName lastName fullName createdAt updatedAt "
_DOUBLING: Final = (
    "query { ...f0 } "
    + _many("fragment f# on Query { a#: health }", 1)
    + " ".join(f"fragment f{n} on Query {{ ...f{n + 1} ...f{n + 1} }}" for n in range(1, 30))
    + " fragment f30 on Query { health }"
)

DOCUMENTS: Final = (
    # Floods
    document("alias flood", "{" + _many("a#: health", 31) + "}", 422, "TOO_MANY_ALIASES"),
    document("alias flood of mutations", "mutation {" + _many(f"a#: {_DELETE}", 31) + "}", 422, "TOO_MANY_ALIASES"),
    document("root fields under aliases", "{" + _many(f"a#: {_GET}", 21) + "}", 422, "TOO_MANY_ROOT_FIELDS", api="query"),
    document("root fields of the same name", "{" + _many("health", 299) + "}", 422, "TOO_MANY_ROOT_FIELDS"),
    document("root fields in inline fragments", "{" + _many("... { health }", 30) + "}", 422, "TOO_MANY_ROOT_FIELDS"),
    document("field flood", "{" + _many("health", 400) + "}", 422, "TOO_MANY_FIELDS"),
    document("repeated field of a kilobyte", "{ getUserAccounts {" + "id " * 900 + "} }", 422, "TOO_MANY_FIELDS", api="query"),
    document("directive flood", "{ health " + "@skip(if: false) " * 31 + "}", 422, "TOO_MANY_DIRECTIVES"),
    document("unknown directive flood", "{ health " + "@a " * 200 + "}", 422, "TOO_MANY_DIRECTIVES"),
    document("directives on the operation", "query " + "@a " * 31 + "{ health }", 422, "TOO_MANY_DIRECTIVES"),
    document("token flood", "{" + "health " * 1_000 + "}", 422, "TOO_MANY_TOKENS"),
    document("token flood of punctuation", "{ health(a: " + "[" * 5_000 + " }", 422, None),
    document("comment flood", "# no\n" * 1_100 + "{ health }", 422, "TOO_MANY_TOKENS"),
    document("comma flood", "{ health" + "," * 30_000 + " }", 200, None),
    document("white space flood", " " * 30_000 + "{ health }", 200, None),
    document("many operations", _many("query q# { health }", 301), 422, None),
    document("many unused fragments", "{ health } " + _many("fragment f# on Query { health }", 160), 422, None),
    document("many variables", "query (" + _many("$v#: Int", 300) + ") { health }", 422, None),
    document("giant name", "{ " + "a" * 60_000 + " }", 422, "INVALID_DOCUMENT"),
    document("giant string", '{ getUserAccount(userAccountId: "' + "a" * 60_000 + '") { id } }', 200, "INVALID_INPUT", api="query"),
    document("giant block string", '{ getUserAccount(userAccountId: """' + "a\n" * 20_000 + '""") { id } }', 200, "INVALID_INPUT", api="query"),
    document("giant whole number", "{ getUserAccounts(first: " + "9" * 50_000 + ") { id } }", 422, "NUMBER_TOO_LONG", api="query"),
    document("giant fraction", "{ getUserAccounts(first: 1." + "9" * 50_000 + ") { id } }", 422, "NUMBER_TOO_LONG", api="query"),
    document("giant exponent", "{ getUserAccounts(first: 1e" + "9" * 50_000 + ") { id } }", 422, "NUMBER_TOO_LONG", api="query"),
    document("number over 32 bits", "{ getUserAccounts(first: 2147483648) { id } }", 422, "INVALID_DOCUMENT", api="query"),
    document("number below the least", "{ getUserAccounts(first: -1) { id } }", 200, "INVALID_INPUT", api="query"),
    document("page over the limit", "{ getUserAccounts(first: 1001) { id } }", 200, "INVALID_INPUT", api="query"),
    document("list of lists", "{ getUserAccountsByIds(userAccountIds: " + "[" * 200 + "]" * 200 + ") { id } }", 422, None, api="query"),
    # Depth and cycles
    document("deep braces", "{ a " * 400 + "}" * 400, 422, "TOO_DEEP"),
    document("deep fields", "{ getUserAccounts " + "{ id " * 17 + "}" * 17 + "}", 422, "TOO_DEEP", api="query"),
    document("deep inline fragments", "{" + "... {" * 300 + "health" + "}" * 300 + "}", 422, None),
    document("deep input object", "mutation { createUserAccount(input: " + "{a: " * 240 + "1" + "}" * 240 + ") { id } }", 422, None),
    document("deep list type", "query ($v: " + "[" * 300 + "Int" + "]" * 300 + ") { health }", 422, None),
    document("fragment that spreads itself", "{ ...f } fragment f on Query { ...f }", 422, "INVALID_DOCUMENT"),
    document("cycle of two fragments", "{ ...a } fragment a on Query { ...b } fragment b on Query { ...a }", 422, "INVALID_DOCUMENT"),
    document("cycle of forty fragments", "{ ...f0 } " + " ".join(f"fragment f{n} on Query {{ ...f{(n + 1) % 40} }}" for n in range(40)), 422, "INVALID_DOCUMENT"),
    document("cycle that nothing enters", "{ health } fragment a on Query { ...b } fragment b on Query { ...a }", 422, "INVALID_DOCUMENT"),
    document("fragments that double", _DOUBLING, 422, "TOO_MANY_FIELDS"),
    document("overlapping aliases", "{ x: health x: __typename }", 422, "INVALID_DOCUMENT"),
    document("unknown fragment", "{ ...nowhere }", 422, "INVALID_DOCUMENT"),
    document("two fragments of one name", "{ ...f } fragment f on Query { health } fragment f on Query { health }", 422, "INVALID_DOCUMENT"),
    # Operations
    document("two operations of one name", "query a { health } query a { health }", 422, "INVALID_DOCUMENT"),
    document("two operations, none named", "query a { health } query b { health }", 422, "OPERATION_NOT_NAMED"),
    document("anonymous beside named", "{ health } query b { health }", 422, "INVALID_DOCUMENT"),
    document("no operation", "fragment f on Query { health }", 422, None),
    document("subscription", "subscription { health }", 422, "INVALID_DOCUMENT"),
    document("mutation in the query API", CREATE, 422, "INVALID_DOCUMENT", api="query"),
    document("type definition", "type Query { health: String }", 422, None),
    document("schema extension", "extend type Query { secret: String }", 422, None),
    document("@defer", "{ ... @defer { health } }", 422, "INVALID_DOCUMENT"),
    document("@stream", "{ getUserAccounts @stream(initialCount: 1) { id } }", 422, "INVALID_DOCUMENT", api="query"),
    document("@include twice", "{ health @include(if: true) @include(if: true) }", 422, "INVALID_DOCUMENT"),
    document("@skip without a condition", "{ health @skip }", 422, "INVALID_DOCUMENT"),
    document("@deprecated in a document", "{ health @deprecated }", 422, "INVALID_DOCUMENT"),
    document("introspection", "{ __schema { types { name } } }", 200, None, production=(422, "INVALID_DOCUMENT")),
    document("introspection of a type", '{ __type(name: "Mutation") { name } }', 200, None, production=(422, "INVALID_DOCUMENT")),
    document("introspection cycle", "{ __schema { types { fields { type { fields { type { fields { type { fields { name } } } } } } } } } }", 422, None),
    document("__proto__", "{ __proto__ }", 422, "INVALID_DOCUMENT"),
    document("constructor", "{ constructor { prototype } }", 422, "INVALID_DOCUMENT"),
    document("private name", "{ __class__ { __mro__ } }", 422, "INVALID_DOCUMENT"),
    document("federation", "{ _service { sdl } }", 422, "INVALID_DOCUMENT"),
    document("field that nearly exists", "{ healt }", 422, "INVALID_DOCUMENT"),
    document("argument that nearly exists", "{ getUserAccount(userAcountId: 1) { id } }", 422, "INVALID_DOCUMENT", api="query"),
    document("type that nearly exists", "query ($a: CreateUserAcountInput) { health }", 422, "INVALID_DOCUMENT"),
    document("Cyrillic letter in a field", "{ hе\u0430lth }", 400, "UNPARSABLE_DOCUMENT"),
    document("full-width field", "{ ｈｅａｌｔｈ }", 400, "UNPARSABLE_DOCUMENT"),
    document("zero width in a field", "{ hea\u200blth }", 400, "UNPARSABLE_DOCUMENT"),
    document("bidi override in a document", "{ health } # \u202e", 200, None),
    document("NUL in a document", "{ health \0 }", 400, "UNPARSABLE_DOCUMENT"),
    document("control character", "{ health \x1b[2J }", 400, "UNPARSABLE_DOCUMENT"),
    document("lone surrogate in a document", '{ getUserAccount(userAccountId: "\ud800") { id } }', 400, "UNPARSABLE_JSON", api="query"),
    document("lone surrogate by escape", '{ getUserAccount(userAccountId: "\\ud800") { id } }', 400, "UNPARSABLE_DOCUMENT", api="query"),
    document("surrogate by braces", '{ getUserAccount(userAccountId: "\\u{D800}") { id } }', 400, "UNPARSABLE_DOCUMENT", api="query"),
    document("beyond Unicode", '{ getUserAccount(userAccountId: "\\u{110000}") { id } }', 400, "UNPARSABLE_DOCUMENT", api="query"),
    document("unterminated string", '{ getUserAccount(userAccountId: "', 400, "UNPARSABLE_DOCUMENT", api="query"),
    document("empty document", "", 400, "UNPARSABLE_DOCUMENT"),
    document("blank document", " \n\t", 400, "UNPARSABLE_DOCUMENT"),
    document("empty selection", "{ }", 200, None),
    document("SQL for a document", "'; DROP TABLE commits;--", 400, "UNPARSABLE_DOCUMENT"),
    document("template injection", "{{7*7}}${7*7}<%= 7*7 %>", 400, "UNPARSABLE_DOCUMENT"),
    document("SQL in an id", "{ getUserAccount(userAccountId: \"x' OR '1'='1\") { id } }", 200, "INVALID_INPUT", api="query"),
    document("path in an id", '{ getUserAccount(userAccountId: "../../etc/passwd") { id } }', 200, "INVALID_INPUT", api="query"),
    document("other aggregate in an id", '{ getUserAccount(userAccountId: "UserAccount-x/y") { id } }', 200, "INVALID_INPUT", api="query"),
    document("mutation as a query", "query { createUserAccount { id } }", 422, "INVALID_DOCUMENT"),
    document("missing variable", SEARCH, 422, "INVALID_VARIABLES", api="query"),
    document("undeclared variable", "{ searchUserAccounts(searchTerm: $term) { id } }", 422, "INVALID_DOCUMENT", api="query"),
    document("variable of an output type", "query ($a: UserAccount) { getUserAccounts { id } }", 422, "INVALID_DOCUMENT", api="query"),
    document("variable declared twice", "query ($a: Int, $a: Int) { getUserAccounts(first: $a) { id } }", 422, "INVALID_DOCUMENT", api="query"),
    document("default that does not fit", 'query ($a: Int = "x") { getUserAccounts(first: $a) { id } }', 422, "INVALID_DOCUMENT", api="query"),
    document("argument twice", "{ getUserAccounts(first: 1, first: 2) { id } }", 422, "INVALID_DOCUMENT", api="query"),
    document("field without a selection", "{ getUserAccounts }", 422, "INVALID_DOCUMENT", api="query"),
    document("selection on a scalar", "{ health { length } }", 422, "INVALID_DOCUMENT"),
)  # fmt: skip

_ON: Final = {"input": PERSON}
VARIABLES: Final = (
    value("number for a text", 1),
    value("whole number of 400 digits", int("9" * 400)),
    value("boolean for a text", True),
    value("null", None),
    value("list for a text", ["Ada"]),
    value("object for a text", {"$ne": ""}),
    value("operator object", {"$where": "sleep(1000)"}),
    value("list of 5,000", ["a"] * 5_000),
    variables("input is a list of inputs", {"input": [PERSON, PERSON]}, 422, "INVALID_VARIABLES"),
    variables("input is a text", {"input": "Ada"}, 422, "INVALID_VARIABLES"),
    variables("input is null", {"input": None}, 422, "INVALID_VARIABLES"),
    variables("input is missing", {}, 422, "INVALID_VARIABLES"),
    variables("field that is not one", {"input": {**PERSON, "isAdmin": True}}, 422, "INVALID_VARIABLES"),
    variables("__proto__ in the input", {"input": {**PERSON, "__proto__": {"roles": ["admin"]}}}, 422, "INVALID_VARIABLES"),
    variables("roles in the input", {"input": {**PERSON, "roles": ["admin"]}}, 422, "INVALID_VARIABLES"),
    variables("a thousand unknown fields", {"input": {**PERSON, **{f"f{n}": n for n in range(1_000)}}}, 422, "INVALID_VARIABLES"),
    variables("deep object", {"input": {**PERSON, "firstName": json.loads('{"a":' * 200 + "1" + "}" * 200)}}, 422, "INVALID_VARIABLES"),
    variables("variables are a list", [PERSON], 400, "MALFORMED_REQUEST"),
    variables("variables are a text", "input", 400, "MALFORMED_REQUEST"),
    variables("variables are a number", 1, 400, "MALFORMED_REQUEST"),
    Attack(name="fraction for a whole number", api="query", body=posted("query ($n: Int) { getUserAccounts(first: $n) { id } }", {"n": 1.5}), status=422, code="INVALID_VARIABLES"),
    Attack(name="text for a whole number", api="query", body=posted("query ($n: Int) { getUserAccounts(first: $n) { id } }", {"n": "1"}), status=422, code="INVALID_VARIABLES"),
    Attack(name="boolean for a whole number", api="query", body=posted("query ($n: Int) { getUserAccounts(first: $n) { id } }", {"n": True}), status=422, code="INVALID_VARIABLES"),
    Attack(name="2**31", api="query", body=posted("query ($n: Int) { getUserAccounts(first: $n) { id } }", {"n": 2**31}), status=422, code="INVALID_VARIABLES"),
    Attack(name="2**64", api="query", body=posted("query ($n: Int) { getUserAccounts(first: $n) { id } }", {"n": 2**64}), status=422, code="INVALID_VARIABLES"),
    Attack(name="ids of another kind", api="query", body=posted("query ($n: [String!]!) { getUserAccountsByIds(userAccountIds: $n) { id } }", {"n": [[["x"]]]}), status=422, code="INVALID_VARIABLES"),
    Attack(name="LIKE wildcards", api="query", body=posted(SEARCH, {"term": "%" * 50 + "_" * 50}), status=200),
    Attack(name="SQL in a search", api="query", body=posted(SEARCH, {"term": "' UNION SELECT * FROM sqlite_master --"}), status=200),
    Attack(name="text that folds to much more", api="query", body=posted(SEARCH, {"term": "\ufdfa" * 100}), status=200),
    Attack(name="NUL in a search", api="query", body=posted(SEARCH, {"term": "a\0b"}), status=200, code="INVALID_INPUT"),
)  # fmt: skip

TEXTS: Final = (
    text("NUL", "a\0b"),
    text("new line", "a\nb"),
    text("escape sequence", "a\x1b[31mb"),
    text("delete", "a\x7fb"),
    text("C1 control", "a\x9bb"),
    text("right-to-left override", "a\u202eb"),
    text("right-to-left embedding", "a\u202bb"),
    text("right-to-left isolate", "a\u2067b"),
    text("first strong isolate", "a\u2068b"),
    text("line separator", "a\u2028b"),
    text("paragraph separator", "a\u2029b"),
    text("private use", "a\ue000b"),
    text("private use plane", "a\U000f0000b"),
    text("noncharacter", "a\ufffeb"),
    text("noncharacter in the middle", "a\ufdd0b"),
    text("last noncharacter", "a\U0010ffffb"),
    text("unassigned", "a\u0378b"),
    text("byte order mark", "a\ufeffb"),
    text("interlinear annotation", "a\ufff9b\ufffac\ufffb"),
    text("soft hyphen", "a\u00adb"),
    text("word joiner", "a\u2060b"),
    text("zero width space", "a\u200bb"),
    text("zero width alone", "\u200d\u200c"),
    text("Hangul filler alone", "\u3164"),
    text("Braille blank alone", "\u2800"),
    text("combining marks alone", "\u0301\u0302"),
    text("tag characters", "a" + "".join(chr(0xE0000 + ord(letter)) for letter in "admin")),
    text("variation selector flood", "a" + "\ufe0f" * 20),
    text("supplementary variation selectors", "a" + "".join(chr(0xE0100 + n) for n in range(20))),
    text("zalgo", "Z" + "\u0335\u0321\u0353\u0301" * 8),
    text("joiner flood", "a" + "\u200d" * 30 + "b"),
    text("blank", "   "),
    text("ideographic spaces", "\u3000\u3000"),
    text("empty", ""),
    text("51 letters", "a" * 51),
    text("51 letters of four bytes", "𠮷" * 51),
    text("60,000 letters", "a" * 60_000),
    text("10,000 combining marks", "a" + "\u0301" * 10_000),
)

_NOT_CREATED: Final = f'{{"query": {json.dumps(CREATE)}, "variables": '.encode()
_HEALTH: Final = posted("{ health }")
BODIES: Final = (
    body("empty body", b""),
    body("not JSON", b"query { health }"),
    body("cut JSON", _HEALTH[:-3]),
    body("text after the JSON", _HEALTH + b"{}"),
    body("two bodies", _HEALTH + _HEALTH),
    body("batch array", b"[" + _HEALTH + b"," + _HEALTH + b"]", code="MALFORMED_REQUEST"),
    body("batch of a hundred", b"[" + b",".join([_HEALTH] * 100) + b"]", code="MALFORMED_REQUEST"),
    body("empty array", b"[]", code="MALFORMED_REQUEST"),
    body("a text", b'"query"', code="MALFORMED_REQUEST"),
    body("a number", b"1", code="MALFORMED_REQUEST"),
    body("a bare null", b"null", code="MALFORMED_REQUEST"),
    body("empty object", b"{}", code="MALFORMED_REQUEST"),
    body("query is null", b'{"query": null}', code="MALFORMED_REQUEST"),
    body("query is a list", b'{"query": ["{ health }"]}', code="MALFORMED_REQUEST"),
    body("query is a number", b'{"query": 1}', code="MALFORMED_REQUEST"),
    body("Query in capitals", b'{"Query": "{ health }"}', code="MALFORMED_REQUEST"),
    body("NaN", _NOT_CREATED + b'{"input": NaN}}'),
    body("Infinity", _NOT_CREATED + b'{"input": -Infinity}}'),
    body("single quotes", b"{'query': '{ health }'}"),
    body("comments in JSON", b'{"query": "{ health }" /* */}'),
    body("trailing comma", b'{"query": "{ health }",}'),
    body("byte order mark", b"\xef\xbb\xbf" + _HEALTH),
    body("UTF-16", _HEALTH.decode().encode("utf-16")),
    body("UTF-32", _HEALTH.decode().encode("utf-32")),
    body("UTF-7", b"+AHsAIgBxAHUAZQByAHkAIgA6-"),
    body("Latin-1", '{"query": "{ héalth }"}'.encode("latin-1")),
    body("overlong UTF-8", b'{"query": "\xc0\xafhealth"}'),
    body("surrogates in UTF-8", b'{"query": "\xed\xa0\x80"}'),
    body("beyond Unicode in UTF-8", b'{"query": "\xf4\x90\x80\x80"}'),
    body("cut UTF-8", b'{"query": "\xe5\xa4'),
    body("NUL bytes", b"\0" * 100),
    body("raw control in a text", b'{"query": "{ health }\x01"}'),
    body("lone high surrogate", _NOT_CREATED + json.dumps({"input": {**PERSON, "firstName": "\ud800"}}).encode() + b"}"),
    body("lone low surrogate", _NOT_CREATED + json.dumps({"input": {**PERSON, "firstName": "\udc00a"}}).encode() + b"}"),
    body("surrogates in the wrong order", _NOT_CREATED + json.dumps({"input": {**PERSON, "firstName": "\udc00\ud800"}}).encode() + b"}"),
    body("surrogate in a key", b'{"query": "{ health }", "variables": {"\\ud800": 1}}'),
    body("deep arrays", b'{"query": "{ health }", "variables": {"a": ' + b"[" * 30_000 + b"]" * 30_000 + b"}}"),
    body("deep objects", b'{"query": "{ health }", "extensions": ' + b'{"a":' * 10_000 + b"1" + b"}" * 10_000 + b"}"),
    body("gzip", gzip.compress(_HEALTH)),
    body("over the limit", b'{"query": "' + b" " * 70_000 + b'{ health }"}', 413, "BODY_TOO_LARGE"),
    body("one byte over the limit", _HEALTH + b" " * (65_537 - len(_HEALTH)), 413, "BODY_TOO_LARGE"),
    body("1e999 for a number", b'{"query": "query ($n: Int) { getUserAccounts(first: $n) { id } }", "variables": {"n": 1e999}}', 400, "MALFORMED_REQUEST", api="query"),
    body("a whole number of 5,000 digits", _NOT_CREATED + b'{"input": ' + b"9" * 5_000 + b"}}", code="MALFORMED_REQUEST"),
    body("a key twice, the last one wrong", b'{"query": "{ health }", "query": 1}', code="MALFORMED_REQUEST"),
    body("operationName is a number", b'{"query": "{ health }", "operationName": 1}', code="MALFORMED_REQUEST"),
    body("operationName is an object", b'{"query": "{ health }", "operationName": {}}', code="MALFORMED_REQUEST"),
    Attack(name="operationName that is none", body=posted("query a { health }", operationName="b"), status=422, code="UNKNOWN_OPERATION"),
    Attack(name="operationName of the whole body", body=posted("query a { health }", operationName="b" * 60_000), status=422, code="UNKNOWN_OPERATION"),
    Attack(name="operationName with markup", body=posted("query a { health }", operationName="<script>alert(1)</script>"), status=422, code="UNKNOWN_OPERATION"),
    Attack(name="empty operationName, several operations", body=posted("query a { health } query b { health }", operationName=""), status=422, code="UNKNOWN_OPERATION"),
    Attack(name="operationName picks another", body=posted("query a { health } mutation b { " + _DELETE + " }", operationName="b"), status=200, code="ACCOUNT_NOT_FOUND"),
    Attack(name="persisted query", body=b'{"extensions": {"persistedQuery": {"version": 1, "sha256Hash": "00"}}}', status=400, code="MALFORMED_REQUEST"),
    Attack(name="unknown members", body=posted("{ health }", admin=True, __proto__={"roles": ["admin"]}), status=200),
)  # fmt: skip

_MULTIPART: Final = b'--x\r\nContent-Disposition: form-data; name="operations"\r\n\r\n' + _HEALTH + b"\r\n--x--\r\n"
MEDIA: Final = (
    media("none", None),
    media("text/plain with JSON", "text/plain"),
    media("form", "application/x-www-form-urlencoded", b"query=mutation"),
    media("multipart", "multipart/form-data; boundary=x", _MULTIPART),
    media("GraphQL text", "application/graphql", b"{ health }"),
    media("text/json", "text/json"),
    media("JSON of another kind", "application/vnd.api+json"),
    media("JSON in Latin-1", "application/json; charset=iso-8859-1"),
    media("JSON in UTF-16", "application/json; charset=utf-16"),
    media("JSON in UTF-7", "application/json; charset=utf-7"),
    media("unknown parameter is passed over, another charset is not", "application/json; a=b; charset=koi8-r"),
    media("two types", "application/json, text/plain"),
    media("a type that begins alike", "application/jsonp"),
    media("octets", "application/octet-stream"),
    media("XML", "application/xml", b'<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>'),
    media("long", "application/json; a=" + '"' + "b" * 5_000),
    Attack(name="gzip that says so", body=gzip.compress(posted(CREATE, _ON)), headers={"content-encoding": "gzip"}, status=415, code="UNSUPPORTED_MEDIA_TYPE"),
    Attack(name="deflate bomb", body=gzip.compress(b" " * 10_000_000)[:60_000], headers={"content-encoding": "deflate"}, status=415, code="UNSUPPORTED_MEDIA_TYPE"),
    Attack(name="brotli", body=b"\x0b", headers={"content-encoding": "br"}, status=415, code="UNSUPPORTED_MEDIA_TYPE"),
    Attack(name="identity twice", body=posted(CREATE, _ON), headers={"content-encoding": "identity, identity"}, status=415, code="UNSUPPORTED_MEDIA_TYPE"),
)  # fmt: skip

HEADERS: Final = (
    header("Accept of HTML", {"accept": "text/html"}, 406, "NOT_ACCEPTABLE"),
    header("Accept of nothing", {"accept": "application/json;q=0"}, 406, "NOT_ACCEPTABLE"),
    header("Accept that is garbage", {"accept": ";;;,,,/"}, 406, "NOT_ACCEPTABLE"),
    header("empty key", {"idempotency-key": ""}, 400, "INVALID_IDEMPOTENCY_KEY"),
    header("key with a space", {"idempotency-key": "a b"}, 400, "INVALID_IDEMPOTENCY_KEY"),
    header("key of 256", {"idempotency-key": "k" * 256}, 400, "INVALID_IDEMPOTENCY_KEY"),
    header("key of 10,000", {"idempotency-key": "k" * 10_000}, 400, "INVALID_IDEMPOTENCY_KEY"),
    header("key in UTF-8", {"idempotency-key": "鍵"}, 400, "INVALID_IDEMPOTENCY_KEY"),
    header("key with a tab", {"idempotency-key": "a\tb"}, 400, "INVALID_IDEMPOTENCY_KEY"),
    Attack(name="key for several fields", body=posted("mutation { a: " + _DELETE + " b: " + _DELETE + " }"), headers={"idempotency-key": "several"}, status=422, code="IDEMPOTENCY_KEY_SEVERAL_FIELDS"),
    *(
        header(f"consistency token: {name}", {"kiseki-consistency-token": token}, 400, "INVALID_TOKEN", api=api)
        for name, token in (
            ("empty", ""), ("garbage", "garbage"), ("another version", "v9.AAAA"), ("a path", "../../etc/passwd"),
            ("SQL", "v1.' OR 1=1"), ("not base64", "v1.%%%%"), ("long", "v1." + "A" * 10_000), ("zeros", "v1.AAAA"),
            ("JSON", '{"a": 1}'), ("a lone letter", "v"), ("UTF-8", "v1.鍵"),
        )
        for api in ("command",)
    ),
    header("forged forwarding", {"x-forwarded-for": "127.0.0.1"}, 401, None),
    header("forged Forwarded", {"forwarded": "for=127.0.0.1;host=localhost"}, 401, None),
    header("another host", {"host": "evil.example"}, 401, None),
    header("host by rebinding", {"host": "127.0.0.1.evil.example"}, 401, None),
    header("host with credentials", {"host": "admin@127.0.0.1"}, 400, "INVALID_HOST"),
    header("token that is none", {"authorization": "Bearer x"}, 401, None),
    header("token, alg none", {"authorization": "Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiJhZG1pbiJ9."}, 401, None),
    header("basic", {"authorization": "Basic YWRtaW46YWRtaW4="}, 401, None),
    header("Authorization without a token", {"authorization": "Bearer"}, 400, "INVALID_AUTHORIZATION"),
    header("Authorization with two", {"authorization": "Bearer a, Bearer b"}, 400, "INVALID_AUTHORIZATION"),
    header("header flood", {f"x-{n}": "a" * 100 for n in range(400)}, 431, None),
    header("one giant header", {"x-giant": "a" * 40_000}, 431, None),
    header("override of the method", {"x-http-method-override": "DELETE", "accept": "text/html"}, 406, "NOT_ACCEPTABLE"),
)  # fmt: skip

METHODS: Final = (
    *(
        Attack(name=f"method {method}", method=method, body=b"", content_type=None, status=405, code="METHOD_NOT_ALLOWED")
        for method in ("PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
    ),
    Attack(name="mutation by GET shows the page", method="GET", path="/api/graphql?query=mutation%7Bx%7D", body=b"", content_type=None, status=200, production=(405, "METHOD_NOT_ALLOWED")),
    Attack(name="POST to the playground", path="/api/playground", body=posted(CREATE, _ON), status=405, code="METHOD_NOT_ALLOWED", production=(404, "NOT_FOUND")),
    Attack(name="document in the query string", path="/api/graphql?query=%7Bhealth%7D", body=b"{}", status=400, code="MALFORMED_REQUEST"),
    Attack(name="target over the limit", path="/api/graphql?" + "a" * 5_000, body=_HEALTH, status=414, code="URI_TOO_LONG"),
    Attack(name="path that climbs", path="/api/playground/../../../etc/passwd", method="GET", body=b"", content_type=None, status=404, code="NOT_FOUND"),
    Attack(name="path that climbs, encoded", path="/api/playground/%2e%2e/%2e%2e/etc/passwd", method="GET", body=b"", content_type=None, status=404, code="NOT_FOUND"),
    Attack(name="path with NUL", path="/api/playground/%00", method="GET", body=b"", content_type=None, status=404, code="NOT_FOUND"),
    Attack(name="slashes", path="//api/graphql", body=_HEALTH, status=404, code="NOT_FOUND"),
    Attack(name="encoded path", path="/api/%67raphql", body=_HEALTH, status=404, code="NOT_FOUND"),
    Attack(name="path in capitals", path="/API/GRAPHQL", body=_HEALTH, status=404, code="NOT_FOUND"),
    Attack(name="path with a point", path="/api/./graphql", body=_HEALTH, status=404, code="NOT_FOUND"),
    Attack(name="a console that is elsewhere", path="/console", method="GET", body=b"", content_type=None, status=404, code="NOT_FOUND"),
    Attack(name="metrics that are elsewhere", path="/metrics", method="GET", body=b"", content_type=None, status=404, code="NOT_FOUND"),
)  # fmt: skip

ATTACKS: Final = (*DOCUMENTS, *VARIABLES, *TEXTS, *BODIES, *MEDIA, *HEADERS, *METHODS)


def _raw(name: str, head: str, sent: bytes, *statuses: int, answers: int = 1) -> RawAttack:
    start = f"POST /api/graphql HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{head}\r\n"
    return RawAttack(name=name, sent=start.encode() + sent, statuses=frozenset(statuses), answers=answers)


_SMUGGLED: Final = b"POST /api/graphql HTTP/1.1\r\nHost: localhost\r\n\r\n"
RAW: Final = (
    _raw("length shorter than the body", "Content-Length: 5\r\n", _HEALTH, 400, answers=2),
    _raw("length longer than the body, then nothing", "Content-Length: 5000\r\n", _HEALTH, 408, 0),
    _raw("length over the limit", "Content-Length: 99999999\r\n", b"", 413),
    _raw("negative length", "Content-Length: -1\r\n", _HEALTH, 400),
    _raw("length with a plus", "Content-Length: +22\r\n", _HEALTH, 400),
    _raw("length in hexadecimal", "Content-Length: 0x16\r\n", _HEALTH, 400),
    _raw("length of many digits", "Content-Length: " + "9" * 400 + "\r\n", _HEALTH, 400),
    _raw("two lengths", f"Content-Length: {len(_HEALTH)}\r\nContent-Length: 0\r\n", _HEALTH, 400),
    _raw("two equal lengths", f"Content-Length: {len(_HEALTH)}\r\nContent-Length: {len(_HEALTH)}\r\n", _HEALTH, 400),
    _raw("list of lengths", "Content-Length: 22, 22\r\n", _HEALTH, 400),
    _raw("length and chunks", "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n" + _SMUGGLED, 400),
    _raw("chunks twice", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n", 400, 501),
    _raw("unknown coding", "Transfer-Encoding: xchunked\r\n", b"0\r\n\r\n", 400, 501),
    _raw("chunks, then gzip", "Transfer-Encoding: chunked, gzip\r\n", b"0\r\n\r\n", 400, 501),
    _raw("chunk size that is none", "Transfer-Encoding: chunked\r\n", b"zz\r\n\r\n", 400),
    _raw("chunk size of many digits", "Transfer-Encoding: chunked\r\n", b"f" * 30 + b"\r\n", 400),
    _raw("negative chunk size", "Transfer-Encoding: chunked\r\n", b"-1\r\n\r\n", 400),
    _raw("space before the colon", "Content-Length : 22\r\n", _HEALTH, 400),
    _raw("folded header", "X-A: a\r\n b\r\nContent-Length: 22\r\n", _HEALTH, 400),
    _raw("NUL in a header", "X-A: a\0b\r\n", b"", 400),
    _raw("bare line feed", "X-A: a\nContent-Length: 0\r\n", b"", 400),
    _raw("header without a name", ": a\r\n", b"", 400),
    _raw("two hosts", "Host: evil.example\r\nContent-Length: 0\r\n", b"", 400),
    _raw("two content types", "Content-Type: text/plain\r\nContent-Length: 0\r\n", b"", 400),
    _raw("two keys", "Idempotency-Key: a\r\nIdempotency-Key: b\r\nContent-Length: 0\r\n", b"", 400),
    _raw("two Authorizations", "Authorization: Bearer a\r\nAuthorization: Bearer b\r\nContent-Length: 0\r\n", b"", 400),
    RawAttack(name="no host", sent=b"POST /api/graphql HTTP/1.1\r\nContent-Length: 0\r\n\r\n", statuses=frozenset({400})),
    RawAttack(name="garbage", sent=b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 64, statuses=frozenset({400})),
    RawAttack(name="HTTP/2 preface", sent=b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", statuses=frozenset({400, 505})),
    RawAttack(name="HTTP/0.9", sent=b"GET /api/graphql\r\n\r\n", statuses=frozenset({400, 505})),
    RawAttack(name="CONNECT", sent=b"CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example:443\r\n\r\n", statuses=frozenset({400, 404, 405})),
    RawAttack(name="absolute target", sent=b"GET http://evil.example/api/graphql HTTP/1.1\r\nHost: localhost\r\n\r\n", statuses=frozenset({200, 400, 404})),
    RawAttack(name="unknown method", sent=b"HACK /api/graphql HTTP/1.1\r\nHost: localhost\r\n\r\n", statuses=frozenset({400, 405, 501})),
)  # fmt: skip
