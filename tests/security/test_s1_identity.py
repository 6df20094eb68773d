"""S1, who is asking: tokens of five algorithms on both APIs and the admin pages; whatever is wrong with a token, the same
401 with nothing done, and the cause in the audit log alone; no credentials 401, a malformed header 400, a right that is
missing 403; revocation within seconds; keys rotated by exchanging a file; no token in anything that is written."""

# ruff: noqa: E501  # a forgery is one line where it can be

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.e2e.client import Reply
from tests.security.attacks import CREATE, PERSON
from tests.servers.certificates import replace
from tests.servers.production import ISSUER, Production, Tokens, base64url, public_jwk, segment

INVALID: Final = 'Bearer realm="kiseki", error="invalid_token"'
MALFORMED: Final = 'Bearer realm="kiseki", error="invalid_request"'
NONE: Final = 'Bearer realm="kiseki"'
LACKING: Final = 'Bearer realm="kiseki", error="insufficient_scope"'
ANYTHING: Final = "{ __typename }"
DOORS: Final = ("command", "query", "admin page", "schema")

ATTACKER_RSA: Final = rsa.generate_private_key(public_exponent=65537, key_size=2048)
ATTACKER_EC: Final = ec.generate_private_key(ec.SECP256R1())
ATTACKER_ED: Final = ed25519.Ed25519PrivateKey.generate()


@pytest.fixture(scope="module")
def production(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Production]:
    folder = tmp_path_factory.mktemp("identity")
    service = Production(folder, TOKEN_LEEWAY=1, TRUSTED_PROXIES="127.0.0.1/32")
    service.tokens.keys["es-old"] = ec.generate_private_key(ec.SECP256R1())
    replace(service.jwks, service.tokens.jwks())
    with service as running:
        yield running


async def asked(production: Production, door: str, token: str | None = None, **headers: str) -> Reply:
    """A request that would be answered with 200 to an administrator; on the command API it would write."""
    match door:
        case "command":
            return await production.graphql("command", CREATE, {"input": PERSON}, token=token, **headers)
        case "query":
            return await production.graphql("query", "{ getUserAccounts { id } }", token=token, **headers)
        case "admin page":
            return await production.get("/api/admin/users", token=token, **headers)
        case _:
            return await production.get("/api/graphql/schema", token=token, **headers)


def without_ids(reply: Reply) -> Any:
    """The body, without what is of each request alone."""
    return json.loads(reply.body, object_hook=lambda found: {k: v for k, v in found.items() if k != "traceId"})


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("algorithm", Tokens.ALGORITHMS)
async def test_every_algorithm_opens_every_door(production: Production, algorithm: str, door: str) -> None:
    token = production.tokens.made(production.tokens.claims("root", "admin"), algorithm)
    reply = await asked(production, door, token)
    assert reply.status == 200, reply.body
    assert b'"errors"' not in reply.body


@pytest.mark.parametrize("door", DOORS)
async def test_without_credentials_every_door_is_shut(production: Production, door: str) -> None:
    before = production.commits()
    reply = await asked(production, door)
    assert (reply.status, reply.headers["www-authenticate"]) == (401, NONE)
    assert reply.json()["code"] == "UNAUTHENTICATED"
    assert production.commits() == before


class Forgery(NamedTuple):
    """A token that is none, and why."""

    name: str
    cause: str
    make: Callable[[Tokens], str]


def _claims(cause: str, name: str, **more: Any) -> Forgery:
    """Well signed, with a claim that is not right."""
    return Forgery(name, cause, lambda tokens: tokens.made(tokens.claims("root", "admin", **more)))


def _later(cause: str, name: str, **seconds: int) -> Forgery:
    """Well signed, with times so many seconds from now."""

    def make(tokens: Tokens) -> str:
        now = int(time.time())
        return tokens.made(tokens.claims("root", "admin", **{claim: now + after for claim, after in seconds.items()}))

    return Forgery(name, cause, make)


def _header(cause: str, name: str, **header: Any) -> Forgery:
    """Well signed and with good claims, under a header that is not right."""
    return Forgery(name, cause, lambda tokens: tokens.made(tokens.claims("root", "admin"), **header))


def _signed(cause: str, name: str, key: Any, algorithm: str, **header: Any) -> Forgery:
    """Signed by somebody else."""
    return Forgery(
        name,
        cause,
        lambda tokens: tokens.sign(
            {"alg": algorithm, "typ": "JWT", **header}, tokens.claims("root", "admin"), key=key, algorithm=algorithm
        ),
    )


def _raw(cause: str, name: str, change: Callable[[Tokens], tuple[bytes, bytes]]) -> Forgery:
    """Well signed, over these bytes of header and claims."""

    def make(tokens: Tokens) -> str:
        header, claims = change(tokens)
        return tokens.sign(header, claims, key=tokens.keys["es-1"], algorithm="ES256")

    return Forgery(name, cause, make)


HEADER: Final = b'{"alg":"ES256","typ":"JWT","kid":"es-1"}'


def _text(tokens: Tokens) -> bytes:
    return json.dumps(tokens.claims("root", "admin")).encode()


def _as_header(header: bytes) -> Callable[[Tokens], tuple[bytes, bytes]]:
    return lambda tokens: (header, _text(tokens))


def _as_claims(claims: bytes) -> Callable[[Tokens], tuple[bytes, bytes]]:
    return lambda _: (HEADER, claims)


def _with_members(text: str) -> Callable[[Tokens], tuple[bytes, bytes]]:
    """Good claims, and this in front."""
    return lambda tokens: (HEADER, b"{" + text.encode() + b"," + _text(tokens)[1:])


def _unsigned(algorithm: str, tail: str) -> Callable[[Tokens], str]:
    return lambda tokens: (
        f"{segment({'alg': algorithm, 'typ': 'JWT'})}.{segment(tokens.claims('root', 'admin'))}.{tail}"
    )


def _confused(how: Encoding, form: PublicFormat) -> Callable[[Tokens], str]:
    """An HMAC with the bytes of a public key, which anybody has."""

    def make(tokens: Tokens) -> str:
        public = tokens.keys["rs-1"].public_key().public_bytes(how, form)
        signing_input = (
            f"{segment({'alg': 'HS256', 'typ': 'JWT', 'kid': 'rs-1'})}.{segment(tokens.claims('root', 'admin'))}"
        )
        return f"{signing_input}.{base64url(hmac.digest(public, signing_input.encode(), hashlib.sha256))}"

    return make


def _changed(at: int, change: Callable[[str], str]) -> Callable[[Tokens], str]:
    """A good token with a segment changed afterwards."""

    def make(tokens: Tokens) -> str:
        parts = tokens.admin().split(".")
        parts[at] = change(parts[at])
        return ".".join(parts)

    return make


def _tampered(tokens: Tokens) -> str:
    """A user's token in which somebody made an administrator of them."""
    header, _, signed = tokens.user("mallory").split(".")
    return f"{header}.{segment(tokens.claims('mallory', 'admin'))}.{signed}"


def _swapped(tokens: Tokens) -> str:
    """The signature of another token of the same key."""
    return f"{tokens.admin('a').rpartition('.')[0]}.{tokens.user('b').rpartition('.')[2]}"


def _not_canonical(text: str) -> str:
    """The same bytes, by other text: bits of the last character that nobody reads."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return text[:-1] + alphabet[alphabet.index(text[-1]) + 1]


KID_TRICKS: Final = (
    "../../../../dev/null", "/dev/null", "file:///dev/null", "es-1' OR '1'='1", "es-1; DROP TABLE keys", "es-1\u0000", "$(id)",
    "https://evil.example/jwks", "ES-1", " es-1", "es-1 ", "http://169.254.169.254/latest/meta-data", "{{7*7}}", "%00", "rs-2",
)  # fmt: skip

FORGERIES: Final = (
    # No signature at all
    *(Forgery(f"alg {name}, no signature", "MALFORMED", _unsigned(name, "")) for name in ("none", "None", "NONE", "nOnE")),
    *(Forgery(f"alg {name!r} and some signature", "WRONG_ALGORITHM", _unsigned(name, "AAAA")) for name in ("none", "NONE ", "", "null", "HS1", "RS1", "HS384", "HS512", "RS384", "RS512", "PS384", "ES384", "ES512", "ES256K", "dir", "A256KW", "es256", "RSA-OAEP")),
    Forgery("ES256, empty signature", "MALFORMED", _changed(2, lambda _: "")),
    Forgery("ES256, signature of zeros", "BAD_SIGNATURE", _changed(2, lambda _: base64url(bytes(64)))),
    Forgery("ES256, short signature", "BAD_SIGNATURE", _changed(2, lambda text: text[:40])),
    Forgery("ES256, long signature", "BAD_SIGNATURE", _changed(2, lambda text: base64url(base64.urlsafe_b64decode(text + "==") + b"\0"))),
    Forgery("ES256, signature of the order of the curve", "BAD_SIGNATURE", _changed(2, lambda _: "_____wAAAAD__________7zm-q2nF56E87nKwvxjJVH_____AAAAAP__________vOb6racXnoTzucrC_GMlUQ")),
    Forgery("payload changed", "BAD_SIGNATURE", _tampered),
    Forgery("signature of another token", "BAD_SIGNATURE", _swapped),
    # Algorithm confusion
    Forgery("HS256 with a public key in PEM", "WRONG_ALGORITHM", _confused(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)),
    Forgery("HS256 with a public key in DER", "WRONG_ALGORITHM", _confused(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)),
    Forgery("HS256 with a public key in PKCS 1", "WRONG_ALGORITHM", _confused(Encoding.PEM, PublicFormat.PKCS1)),
    _signed("WRONG_ALGORITHM", "HS256 under the id of an ES256 key", b"x" * 48, "HS256", kid="es-1"),
    Forgery("RS256 with the key of PS256", "WRONG_ALGORITHM", lambda tokens: tokens.sign({"alg": "RS256", "kid": "ps-1"}, tokens.claims("root", "admin"), key=tokens.keys["ps-1"], algorithm="RS256")),
    Forgery("PS256 with the key of RS256", "WRONG_ALGORITHM", lambda tokens: tokens.sign({"alg": "PS256", "kid": "rs-1"}, tokens.claims("root", "admin"), key=tokens.keys["rs-1"], algorithm="PS256")),
    Forgery("says RS256, signed as PS256", "BAD_SIGNATURE", lambda tokens: tokens.sign({"alg": "RS256", "kid": "rs-1"}, tokens.claims("root", "admin"), key=tokens.keys["rs-1"], algorithm="PS256")),
    Forgery("ES256 under the id of an EdDSA key", "WRONG_ALGORITHM", lambda tokens: tokens.sign({"alg": "ES256", "kid": "ed-1"}, tokens.claims("root", "admin"), key=tokens.keys["es-1"], algorithm="ES256")),
    # Keys of somebody else
    _signed("BAD_SIGNATURE", "another RSA key", ATTACKER_RSA, "RS256", kid="rs-1"),
    _signed("BAD_SIGNATURE", "another EC key", ATTACKER_EC, "ES256", kid="es-1"),
    _signed("BAD_SIGNATURE", "another Ed25519 key", ATTACKER_ED, "EdDSA", kid="ed-1"),
    _signed("BAD_SIGNATURE", "another secret", b"secret-secret-secret-secret-secret!", "HS256"),
    _signed("BAD_SIGNATURE", "an empty secret", b"", "HS256"),
    _signed("UNKNOWN_KEY", "a key id of nobody", ATTACKER_EC, "ES256", kid="es-9"),
    _header("UNKNOWN_KEY", "a good key under a wrong id", kid="es-2"),
    # Keys, or where they are, in the token
    _signed("HEADER_REFUSED", "key in the header", ATTACKER_EC, "ES256", jwk=public_jwk("es-1", ATTACKER_EC), kid="es-1"),
    _signed("HEADER_REFUSED", "address of keys in the header", ATTACKER_RSA, "RS256", jku="https://evil.example/jwks.json", kid="rs-1"),
    _signed("HEADER_REFUSED", "address of a certificate", ATTACKER_RSA, "RS256", x5u="https://evil.example/c.pem", kid="rs-1"),
    _signed("HEADER_REFUSED", "certificate in the header", ATTACKER_RSA, "RS256", x5c=["MIIB"], kid="rs-1"),
    *(_header("HEADER_REFUSED", f"{name}: {given!r}, well signed", **{name: given}) for name, given in (("jwk", {}), ("jku", ""), ("x5c", []), ("x5t", "a"), ("x5t#S256", "a"), ("crit", ["exp"]), ("crit", []), ("b64", False), ("b64", True), ("zip", "DEF"), ("cty", "JWT"), ("enc", "A128GCM"), ("epk", {}))),
    # Key ids as something else
    *(_header("HEADER_REFUSED" if "\0" in kid else "UNKNOWN_KEY", f"kid {kid!r}", kid=kid) for kid in KID_TRICKS),
    *(_header("HEADER_REFUSED", f"kid {kid!r:.40}", kid=kid) for kid in ("", 1, True, ["es-1"], {"kid": "es-1"}, "k" * 129, "ключ", "a\nb")),
    _raw("HEADER_REFUSED", "kid null", lambda tokens: (b'{"alg":"ES256","kid":null}', _text(tokens))),
    # The type
    *(_header("WRONG_TYPE", f"typ {typ!r}", typ=typ) for typ in ("JWE", "secevent+jwt", "dpop+jwt", "", 1, ["JWT"], "JWT\0", "application/jwt")),
    # Mistyped algorithms
    *(_raw("WRONG_ALGORITHM", f"alg {alg.decode()}", _as_header(b'{"alg":' + alg + b',"kid":"es-1"}')) for alg in (b"null", b"1", b"true", b'["ES256"]', b'{"a":1}', b'"ES256 "')),
    _raw("WRONG_ALGORITHM", "no alg", lambda tokens: (b'{"typ":"JWT","kid":"es-1"}', _text(tokens))),
    # JSON that two readers read differently
    _raw("MALFORMED", "alg twice", lambda tokens: (b'{"alg":"none","alg":"ES256","kid":"es-1"}', _text(tokens))),
    _raw("MALFORMED", "kid twice", lambda tokens: (b'{"alg":"ES256","kid":"rs-1","kid":"es-1"}', _text(tokens))),
    _raw("MALFORMED", "sub twice", _with_members('"sub":"victim"')),
    _raw("MALFORMED", "sub twice, once by an escape", _with_members('"\\u0073ub":"victim"')),
    _raw("MALFORMED", "roles twice", _with_members('"roles":["user"]')),
    _raw("MALFORMED", "exp twice", _with_members('"exp":1')),
    _raw("MALFORMED", "duplicate deep inside", _with_members('"more":{"a":1,"a":2}')),
    _raw("MALFORMED", "NaN", _with_members('"more":NaN')),
    _raw("MALFORMED", "Infinity", _with_members('"more":Infinity')),
    _raw("MALFORMED", "lone surrogate", _with_members('"more":"\\ud800"')),
    _raw("MALFORMED", "deep", _with_members('"more":' + "[" * 50 + "]" * 50)),
    _raw("MALFORMED", "comment", _with_members('/* */"more":1')),
    _raw("MALFORMED", "trailing comma", lambda tokens: (HEADER, _text(tokens)[:-1] + b",}")),
    _raw("MALFORMED", "something after the object", lambda tokens: (HEADER, _text(tokens) + b"{}")),
    _raw("MALFORMED", "byte order mark", lambda tokens: (HEADER, b"\xef\xbb\xbf" + _text(tokens))),
    _raw("MALFORMED", "UTF-16", lambda tokens: (HEADER, _text(tokens).decode().encode("utf-16"))),
    _raw("MALFORMED", "UTF-8 that is none", lambda tokens: (HEADER, _text(tokens)[:-1] + b',"more":"\xff"}')),
    _raw("MALFORMED", "overlong UTF-8", lambda tokens: (HEADER, _text(tokens)[:-1] + b',"more":"\xc0\xaf"}')),
    *(_raw("MALFORMED", f"claims {claims.decode()}", _as_claims(claims)) for claims in (b"[]", b"null", b"1", b'"text"', b"{", b"not JSON")),
    _raw("MALFORMED", "header that is a list", lambda tokens: (b'["ES256"]', _text(tokens))),
    # The form
    Forgery("one segment", "MALFORMED", lambda _: "abc"),
    Forgery("two segments", "MALFORMED", lambda tokens: tokens.admin().rpartition(".")[0]),
    Forgery("four segments", "MALFORMED", lambda tokens: tokens.admin() + ".AAAA"),
    Forgery("five segments (JWE)", "MALFORMED", lambda tokens: tokens.admin() + ".AAAA.AAAA"),
    Forgery("only points", "MALFORMED", lambda _: ".."),
    Forgery("padding", "MALFORMED", lambda tokens: tokens.admin() + "=="),
    Forgery("standard base64", "MALFORMED", _changed(2, lambda text: "+/" + text[2:])),
    Forgery("signature by other text", "MALFORMED", _changed(2, _not_canonical)),
    Forgery("a letter less than bytes have", "MALFORMED", _changed(2, lambda text: text + "AAA")),
    Forgery("over 8 KB", "TOO_LARGE", lambda tokens: tokens.made(tokens.claims("root", "admin", more="x" * 8_000))),
    # Claims
    *(_claims("BAD_CLAIM", f"no {name}", **{name: None}) for name in ("sub", "exp", "iat", "aud")),
    _claims("BAD_CLAIM", "no iss", iss=None),
    *(_claims("BAD_CLAIM", f"sub {sub!r:.30}", sub=sub) for sub in ("", 1, True, ["root"], {"a": 1}, "a\0b", "a\nb", "s" * 256)),
    *(_claims("BAD_CLAIM", f"userId {given!r:.30}", userId=given) for given in ("", 1, True, ["x"], "a\0b", "u" * 256)),
    *(_claims("BAD_CLAIM", f"roles {given!r:.40}", roles=given) for given in ("admin", {"admin": True}, [1], [None], [""], ["admin", ["admin"]], ["r" * 65], ["a\0"], [f"r{n}" for n in range(33)], True, 1)),
    *(_claims("BAD_CLAIM", f"exp {given!r}", exp=given) for given in ("9999999999", True, [1], -1, 0, 10**12)),
    *(_claims("BAD_CLAIM", f"iat {given!r}", iat=given) for given in ("1", True, -1, 0)),
    *(_claims("BAD_CLAIM", f"nbf {given!r}", nbf=given) for given in ("1", False, -1, [0])),
    *(_claims("WRONG_AUDIENCE", f"aud {given!r}", aud=given) for given in ("other", "", "KISEKI", "kiseki ", ["other"], "kiseki,other", "kisek")),
    *(_claims("BAD_CLAIM", f"aud {given!r:.30}", aud=given) for given in (1, True, [], ["kiseki", 1], {"kiseki": 1}, ["kiseki"] * 33)),
    *(_claims("WRONG_ISSUER", f"iss {given!r}", iss=given) for given in ("https://evil.example", ISSUER + "/", ISSUER.upper(), "", ISSUER + "\0", "kiseki-development")),
    *(_claims("BAD_CLAIM", f"iss {given!r} by type", iss=given) for given in (1, [ISSUER], True)),
    _later("EXPIRED", "expired", iat=-100, exp=-10),
    _later("EXPIRED", "expired long ago", iat=-4_000, exp=-3_900),
    _later("NOT_YET_VALID", "not yet valid", nbf=60),
    _later("ISSUED_IN_FUTURE", "issued in the future", iat=100, exp=200),
    _later("BAD_LIFETIME", "valid for a second too long", iat=0, exp=3_601),
    _later("BAD_LIFETIME", "valid for a century", iat=0, exp=3_000_000_000),
    _later("BAD_LIFETIME", "begins long ago to end soon", iat=-80_000, exp=100),
    _later("BAD_LIFETIME", "ends when it begins", iat=0, exp=0),
    _later("BAD_LIFETIME", "ends before it begins", iat=0, exp=-1),
)  # fmt: skip


def test_the_list_is_long_and_its_names_are_unique() -> None:
    assert len({forgery.name for forgery in FORGERIES}) == len(FORGERIES)
    assert len(FORGERIES) > 150


async def test_every_forgery_gets_the_same_401_and_its_cause_into_the_audit_log(production: Production) -> None:
    """All over one connection, which also shows that a refusal does not end it."""
    before = production.commits()
    bodies: list[Any] = []
    sent: list[str] = []
    async with asyncio.timeout(60), production.client("command") as client:
        for forgery in FORGERIES:
            token = forgery.make(production.tokens)
            sent.append(token)
            reply = await client.graphql(CREATE, {"input": PERSON}, authorization=f"Bearer {token}")
            assert (reply.status, reply.headers["www-authenticate"]) == (401, INVALID), (forgery.name, reply.body)
            bodies.append(without_ids(reply))
    assert all(body == bodies[0] for body in bodies), "what is wrong with a token shows in the answer"
    assert production.commits() == before
    for cause in sorted({forgery.cause for forgery in FORGERIES}):
        record = await production.recorded(lambda one, cause=cause: one.get("code") == cause)  # type: ignore[misc]
        assert (record["kind"], record["outcome"]) == ("authentication.refused", "refused")
    written = production.log() + json.dumps(production.records())
    for token in sent:
        assert not [part for part in token.split(".") if len(part) > 20 and part in written]


@pytest.mark.parametrize("forgery", FORGERIES[::7], ids=lambda forgery: forgery.name)
@pytest.mark.parametrize("door", DOORS)
async def test_no_door_believes_forgeries(production: Production, forgery: Forgery, door: str) -> None:
    before = production.commits()
    reply = await asked(production, door, forgery.make(production.tokens))
    assert (reply.status, reply.headers["www-authenticate"]) == (401, INVALID)
    assert without_ids(reply)["detail"] == "the credentials were not accepted"
    assert production.commits() == before


async def causes(production: Production, tokens: list[str]) -> list[str | None]:
    """What `kiseki token inspect` says of each, as a person would ask."""
    said: list[str | None] = []
    for token in tokens:
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "kiseki", "token", "inspect", "--json", "--data-dir", str(production.data)],
            input=token,
            capture_output=True,
            text=True,
            env={**production.environment, "PATH": "/usr/bin"},
            timeout=60,
            check=False,
        )
        said.append(json.loads(done.stdout)["code"])
        assert done.returncode == (0 if said[-1] is None else 1)
    return said


async def test_an_operator_is_told_the_cause(production: Production) -> None:
    chosen = [forgery for forgery in FORGERIES if forgery.name in ("expired",)]
    tokens = [production.tokens.admin(), *(forgery.make(production.tokens) for forgery in chosen)]
    assert await causes(production, tokens) == [None, *(forgery.cause for forgery in chosen)]


MALFORMED_HEADERS: Final = (
    "Bearer", "Bearer ", "bearer", "Bearer  {}", "Bearer\t{}", "Bearer {} {}", "Bearer {}, Bearer {}", "Bearer {},", 'Bearer "{}"',
    "Bearer token={}", "", "Bearer {}\u00e9", "Bearer: {}", ":", "Bearer %s" % ("a b " * 10), "Bearer {}=a", "Bearer {}\u3000",
)  # fmt: skip


@pytest.mark.parametrize("value", MALFORMED_HEADERS)
async def test_a_malformed_header_is_400(production: Production, value: str) -> None:
    given = value.replace("{}", production.tokens.admin())
    before = production.commits()
    async with production.client("command") as client:
        reply = await client.graphql(CREATE, {"input": PERSON}, authorization=given)
    assert (reply.status, reply.headers.get("www-authenticate")) == (400, MALFORMED), reply.body
    assert production.commits() == before


async def test_two_headers_are_400_even_if_both_are_good(production: Production) -> None:
    token = production.tokens.admin()
    body = json.dumps({"query": CREATE, "variables": {"input": PERSON}})
    head = f"POST /api/graphql HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    before = production.commits()
    for first, second in (("Authorization", "authorization"), ("Authorization", "AUTHORIZATION")):
        sent = f"{head}{first}: Bearer {token}\r\n{second}: Bearer {token}\r\nConnection: close\r\n\r\n{body}"
        answer = await production.raw("command", sent.encode())
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert f"www-authenticate: {MALFORMED}\r\n".encode() in answer
    assert production.commits() == before


@pytest.mark.parametrize(
    "value",
    ["Basic YWRtaW46YWRtaW4=", "Digest username=root", "Negotiate abc", "DPoP {}", "Bearer1 {}", "Token {}", "{}"],
)
async def test_another_scheme_is_no_credentials(production: Production, value: str) -> None:
    async with production.client("query") as client:
        reply = await client.graphql(ANYTHING, authorization=value.replace("{}", production.tokens.admin()))
    assert (reply.status, reply.headers["www-authenticate"]) == (401, NONE)


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "bEaReR"])
async def test_the_scheme_is_case_insensitive(production: Production, scheme: str) -> None:
    async with production.client("query") as client:
        reply = await client.graphql(ANYTHING, authorization=f"{scheme} {production.tokens.user()}")
    assert reply.status == 200


async def test_tokens_elsewhere_are_not_read(production: Production) -> None:
    token = production.tokens.admin()
    async with production.client("query") as client:
        for path, headers in (
            (f"/api/admin/users?access_token={token}", {}),
            ("/api/admin/users", {"cookie": f"access_token={token}; Authorization=Bearer {token}"}),
            ("/api/admin/users", {"x-authorization": f"Bearer {token}", "proxy-authorization": f"Bearer {token}"}),
            ("/api/admin/users", {"sec-websocket-protocol": f"bearer, {token}"}),
            ("/api/admin/users", {"x-amzn-oidc-data": token, "x-forwarded-user": "root", "x-remote-user": "root"}),
        ):
            reply = await client.request("GET", path, headers=headers)
            assert (reply.status, reply.headers["www-authenticate"]) == (401, NONE), path
        reply = await client.graphql(ANYTHING, {"access_token": token, "authorization": f"Bearer {token}"})
        assert reply.status == 401
    assert token.rpartition(".")[2] not in production.log()


async def test_nobody_is_refused_before_their_body_is_read(production: Production) -> None:
    """401 comes at once, although the body that was announced never does."""
    sent = b"POST /api/graphql HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 60000\r\n\r\n"
    started = time.monotonic()
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", production.port("command"), ssl=production.context, server_hostname="localhost"
    )
    writer.write(sent)
    async with asyncio.timeout(10):
        assert await reader.readline() == b"HTTP/1.1 401 Unauthorized\r\n"
    assert time.monotonic() - started < 1.2  # the time for a body is 1.5 s
    writer.close()


@pytest.mark.parametrize("roles", [(), ("Admin",), ("admin ",), ("administrator",), ("guest", "USER")])
async def test_a_right_that_is_missing_is_403_and_nothing_runs(production: Production, roles: tuple[str, ...]) -> None:
    token = production.tokens.made(production.tokens.claims("guest", *roles))
    before = production.commits()
    for door in DOORS:
        reply = await asked(production, door, token)
        assert (reply.status, reply.headers["www-authenticate"]) == (403, LACKING), door
        assert reply.json()["code"] == "FORBIDDEN"
    assert production.commits() == before
    await production.recorded(lambda one: one["kind"] == "access.denied" and one.get("subject") == "guest")


async def test_a_revoked_subject_is_refused_within_seconds_everywhere(production: Production) -> None:
    tokens = production.tokens
    revoked, other = tokens.admin("revoked"), tokens.admin("not-revoked")
    for door in DOORS:
        assert (await asked(production, door, revoked)).status == 200  # so it is remembered as verified
    done = production.kiseki("token", "revoke", "--subject", "revoked")
    assert done.returncode == 0, done.stderr
    started = time.monotonic()
    async with asyncio.timeout(10):
        while (await asked(production, "query", revoked)).status == 200:
            await asyncio.sleep(0.05)
    print(f"revoked after {time.monotonic() - started:.2f} s")
    before = production.commits()
    for door in DOORS:
        reply = await asked(production, door, revoked)
        assert (reply.status, reply.headers["www-authenticate"]) == (401, INVALID)
        assert without_ids(reply)["detail"] == "the credentials were not accepted"
        assert (await asked(production, door, other)).status == 200
    assert production.commits() == before + 1
    record = await production.recorded(lambda one: one.get("code") == "REVOKED")
    assert record["subject"] == "revoked"
    assert await production.recorded(lambda one: one["kind"] == "token.revoked")
    # Who logs in again is let in again.
    async with asyncio.timeout(10):
        while (await asked(production, "query", tokens.admin("revoked"))).status != 200:
            await asyncio.sleep(0.1)


async def test_a_verified_token_is_not_believed_longer_than_it_is_valid(production: Production) -> None:
    now = int(time.time())
    token = production.tokens.user("short", iat=now, exp=now + 2)
    async with asyncio.timeout(10):
        assert (await production.graphql("query", ANYTHING, token=token)).status == 200
        while (await production.graphql("query", ANYTHING, token=token)).status == 200:
            await asyncio.sleep(0.05)
    assert now + 3 <= time.time() < now + 5  # a second of leeway


async def test_keys_are_rotated_by_exchanging_the_file(production: Production) -> None:
    tokens = production.tokens
    fresh = ec.generate_private_key(ec.SECP256R1())
    old = tokens.sign(
        {"alg": "ES256", "kid": "es-old"},
        tokens.claims("rotation", "user"),
        key=tokens.keys["es-old"],
        algorithm="ES256",
    )
    new = tokens.sign(
        {"alg": "ES256", "kid": "es-new"}, tokens.claims("rotation", "user"), key=fresh, algorithm="ES256"
    )

    async def statuses() -> tuple[int, int]:
        first, second = [await production.graphql("query", ANYTHING, token=token) for token in (old, new)]
        return first.status, second.status

    assert await statuses() == (200, 401)
    # Half a file changes nothing.
    replace(production.jwks, tokens.jwks()[:200])
    await production.recorded(lambda one: one["kind"] == "jwks.failed")
    assert await statuses() == (200, 401)
    kept = [entry for entry in json.loads(tokens.jwks())["keys"] if entry["kid"] != "es-old"]
    replace(production.jwks, json.dumps({"keys": [*kept, public_jwk("es-new", fresh)]}).encode())
    async with asyncio.timeout(15):
        while await statuses() != (401, 200):
            await asyncio.sleep(0.1)
    assert (await production.graphql("query", ANYTHING, token=tokens.user())).status == 200


async def test_issuing_in_production_has_to_be_meant_and_is_recorded(production: Production) -> None:
    arguments = ("token", "issue", "--subject", "operator", "--role", "admin", "--lifetime", "60")
    refused = production.kiseki(*arguments)
    assert refused.returncode != 0
    assert refused.stdout == ""
    assert "--production" in refused.stderr
    done = production.kiseki(*arguments, "--production")
    assert done.returncode == 0, done.stderr
    token = done.stdout.strip()
    assert token not in done.stderr
    assert (await asked(production, "admin page", token)).status == 200
    record = await production.recorded(lambda one: one["kind"] == "token.issued")
    assert (record["subject"], record["outcome"]) == ("operator", "done")
    assert record["target"] in json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))["jti"]


@pytest.mark.parametrize("hidden", ["HS256", "ES256"])
async def test_no_token_is_written_anywhere(production: Production, hidden: str) -> None:
    good = production.tokens.made(production.tokens.claims("hidden", "user"), hidden)
    bad = good[:-8] + "AAAAAAAA"
    for door in DOORS:
        for token in (good, bad):
            await asked(production, door, token)
            await production.graphql("command", "{ " + token, token=good)
            await production.get(f"/api/{token}", token=good)
    await production.recorded(lambda one: one["kind"] == "access.denied" and one.get("subject") == "hidden")
    metrics = (await production.manage("/metrics")).body + (await production.manage("/ready")).body
    files = [path for path in (*production.data.rglob("*"), *production.audit.rglob("*")) if path.is_file()]
    everything = production.log().encode() + metrics + b"".join(path.read_bytes() for path in files)
    assert b"hidden" in everything  # the subject is in the audit log
    for token in (good, bad):
        for part in token.split(".")[1:]:
            assert part.encode() not in everything


async def test_the_record_of_a_refusal_names_the_client_behind_a_proxy_and_the_trace(production: Production) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    headers = {"x-forwarded-for": "198.51.100.77", "traceparent": f"00-{trace}-b7ad6b7169203331-01"}
    reply = await production.graphql("query", ANYTHING, token="a.b.c", **headers)
    assert reply.json()["traceId"] == trace
    record = await production.recorded(
        lambda one: one["kind"] == "authentication.refused" and one.get("address") == "198.51.100.77", seconds=3
    )
    assert record["trace_id"] == trace
