"""Before anything is measured: is the security of the servers really on, and off? Used by `security`."""

import http.client
import json
import ssl
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from benchmarks.errors import BenchmarkError
from benchmarks.workload import Endpoint

HEADERS = (
    "strict-transport-security",
    "content-security-policy",
    "x-content-type-options",
    "x-frame-options",
    "referrer-policy",
    "permissions-policy",
    "cross-origin-opener-policy",
    "cross-origin-resource-policy",
)
LIMITS = ("ratelimit", "ratelimit-policy")
BODY = json.dumps({"query": "{ __typename }"})


class Reply(NamedTuple):
    """Status and header fields (names in lower case)."""

    status: int
    headers: Mapping[str, str]


def prove_on(endpoint: Endpoint) -> None:
    """Raises BenchmarkError unless tokens, limits, the list of hosts and all headers are in force."""
    good = ask(endpoint, endpoint.token)
    _expect("a token of the load", good, 200, [*HEADERS, *LIMITS], [])
    _expect("no token", ask(endpoint, None), 401, [*HEADERS, "www-authenticate"], [])
    assert endpoint.token is not None
    _expect("a changed token", ask(endpoint, f"{endpoint.token[:-4]}AAAA"), 401, HEADERS, [])
    _expect("another host", ask(endpoint, endpoint.token, host="evil.example"), 400, HEADERS, [])


def prove_off(endpoint: Endpoint) -> None:
    """Raises BenchmarkError unless nothing of that is."""
    _expect("no token", ask(endpoint, None), 200, [], [*HEADERS, *LIMITS])
    _expect("another host", ask(endpoint, None, host="any.example"), 200, [], [*HEADERS, *LIMITS])


def ask(endpoint: Endpoint, token: str | None, *, host: str | None = None) -> Reply:
    """The reply to the smallest document."""
    headers = {"Host": host or f"{endpoint.host}:{endpoint.port}", "Content-Type": "application/json"}
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    if endpoint.authority is None:
        connection = http.client.HTTPConnection(endpoint.host, endpoint.port, timeout=10)
    else:
        tls = ssl.create_default_context(cafile=endpoint.authority)
        connection = http.client.HTTPSConnection(endpoint.host, endpoint.port, timeout=10, context=tls)
    try:
        connection.request("POST", endpoint.path, BODY, headers)
        response = connection.getresponse()
        response.read()
        return Reply(response.status, {name.lower(): value for name, value in response.getheaders()})
    except (OSError, http.client.HTTPException) as error:
        raise BenchmarkError(f"no answer: {error}") from error
    finally:
        connection.close()


def _expect(what: str, reply: Reply, status: int, present: Sequence[str], absent: Sequence[str]) -> None:
    wrong = [f"{name} is missing" for name in present if name not in reply.headers]
    wrong += [f"{name} is there" for name in absent if name in reply.headers]
    if reply.status != status:
        wrong.insert(0, f"{reply.status} and not {status}")
    if wrong:
        raise BenchmarkError(f"it is not what is to be measured: {what}: {', '.join(wrong)}")
