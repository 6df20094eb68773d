"""What the load generator sends: one create and one rename in turn, as any GraphQL client would."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from string import ascii_lowercase
from typing import Any

CREATE_FIELD = "createUserAccount"
RENAME_FIELD = "renameUserAccount"
QUERY_FIELD = "getUserAccount"
CREATE_DOCUMENT = """\
mutation CreateUserAccount($input: CreateUserAccountInput!) {
  createUserAccount(input: $input) { id }
}"""
RENAME_DOCUMENT = """\
mutation RenameUserAccount($input: RenameUserAccountInput!) {
  renameUserAccount(input: $input) { id }
}"""
QUERY_DOCUMENT = """\
query GetUserAccount($id: String!) {
  getUserAccount(userAccountId: $id) { id firstName lastName }
}"""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a GraphQL API is, the bearer token that it wants, if any, and the authority of its certificate, if it has
    TLS (a file)."""

    port: int
    path: str = "/api/graphql"
    token: str | None = None
    host: str = "127.0.0.1"
    authority: str | None = None


@dataclass(frozen=True, slots=True)
class Name:
    """First and last name of an account."""

    first: str
    last: str


def letters(number: int) -> str:
    """A different word of ASCII letters for every number from 0: A, B, … Z, Ab, Bb …"""
    word = []
    while True:
        number, letter = divmod(number, len(ascii_lowercase))
        word.append(ascii_lowercase[letter])
        if number == 0:
            return "".join(word).capitalize()


def names(first: int = 0) -> Iterator[Name]:
    """Different names without end; those of another `first` differ too, if it is far enough away."""
    return (Name(f"New{letters(n).lower()}", "Load") for n in count(first))


class Requests:
    """Encodes requests for one endpoint; no two of them carry the same name."""

    def __init__(self, endpoint: Endpoint, names_to_give: Iterator[Name] | None = None) -> None:
        token = "" if endpoint.token is None else f"Authorization: Bearer {endpoint.token}\r\n"
        self._head = (
            f"POST {endpoint.path} HTTP/1.1\r\n"
            f"Host: {endpoint.host}:{endpoint.port}\r\n"
            "Accept: application/json\r\n"
            "Content-Type: application/json\r\n"
            f"{token}"
            "Content-Length: "
        ).encode()
        self._create = _body_start(CREATE_DOCUMENT)
        self._rename = _body_start(RENAME_DOCUMENT)
        self._query = f'{{"query":{json.dumps(QUERY_DOCUMENT)},"variables":{{"id":'.encode()
        self._names = names() if names_to_give is None else names_to_give

    def create(self) -> tuple[bytes, Name]:
        """A request for a new account, and the name it will have."""
        name = next(self._names)
        return self._encode(
            self._create,
            {
                "firstName": name.first,
                "lastName": name.last,
                "emailAddress": f"{name.first.lower()}@example.com",
            },
        ), name

    def rename(self, account_id: str) -> tuple[bytes, Name]:
        """A request that gives the account a name it never had, and that name."""
        name = next(self._names)
        return self._encode(
            self._rename,
            {"userAccountId": account_id, "firstName": name.first, "lastName": name.last},
        ), name

    def query(self, account_id: str) -> bytes:
        """A request for one account."""
        body = self._query + json.dumps(account_id).encode() + b"}}"
        return b"%b%d\r\n\r\n%b" % (self._head, len(body), body)

    def _encode(self, body_start: bytes, command: Mapping[str, str]) -> bytes:
        body = body_start + json.dumps(command).encode() + b"}}"
        return b"%b%d\r\n\r\n%b" % (self._head, len(body), body)


def acknowledged_id(body: bytes, field: str) -> str:
    """The id in the reply to a mutation or query of one account; raises ValueError when it has failed."""
    reply: Any = json.loads(body)
    if not isinstance(reply, dict) or "errors" in reply:
        raise ValueError("the reply holds errors")
    try:
        account_id = reply["data"][field]["id"]
    except (KeyError, TypeError) as error:
        raise ValueError("the reply holds no id") from error
    if not isinstance(account_id, str) or not account_id:
        raise ValueError("the id is not a string")
    return account_id


def _body_start(document: str) -> bytes:
    return f'{{"query":{json.dumps(document)},"variables":{{"input":'.encode()
