"""After the load: does the read side show exactly what was acknowledged?"""

import json
import random
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

from benchmarks.errors import BenchmarkError
from benchmarks.workload import Endpoint, Name

PAGE = 1000
SAMPLES = 50
PROBLEMS_SHOWN = 3
ACCOUNT = "query GetUserAccount($id: String!) { getUserAccount(userAccountId: $id) { id firstName lastName } }"
ACCOUNTS = """\
query GetUserAccounts($first: Int, $after: String) {
  getUserAccounts(first: $first, after: $after) { id firstName lastName }
}"""


def check(endpoint: Endpoint, *, creates: int, acknowledged: Mapping[str, Name]) -> None:
    """Raises BenchmarkError unless all accounts, and only they, are there with their last name."""
    if creates != len(acknowledged):
        raise BenchmarkError(f"{creates} acknowledged creates gave only {len(acknowledged)} different ids")
    sample = random.Random(creates).sample(sorted(acknowledged), min(SAMPLES, len(acknowledged)))
    found = {account_id: read_account(endpoint, account_id) for account_id in sample}
    problems = [
        *differences({account_id: acknowledged[account_id] for account_id in sample}, found),
        *differences(acknowledged, read_accounts(endpoint)),
    ]
    if problems:
        shown = "; ".join(problems[:PROBLEMS_SHOWN])
        raise BenchmarkError(f"the read model is wrong in {len(problems)} places: {shown}")


def differences(acknowledged: Mapping[str, Name], found: Mapping[str, Name | None]) -> list[str]:
    """One line for each account that is missing, has another name, or was never acknowledged."""
    wrong = [
        f"{account_id} is {found.get(account_id)}, acknowledged was {name}"
        for account_id, name in acknowledged.items()
        if found.get(account_id) != name
    ]
    return wrong + [f"{account_id} was never acknowledged" for account_id in found if account_id not in acknowledged]


def read_account(endpoint: Endpoint, account_id: str) -> Name | None:
    """The account's name by getUserAccount."""
    account = _query(endpoint, ACCOUNT, {"id": account_id})["getUserAccount"]
    return None if account is None else Name(account["firstName"], account["lastName"])


def read_accounts(endpoint: Endpoint) -> dict[str, Name]:
    """The names of all accounts by getUserAccounts, page by page."""
    accounts: dict[str, Name] = {}
    after: str | None = None
    while True:
        page = _query(endpoint, ACCOUNTS, {"first": PAGE, "after": after})["getUserAccounts"]
        known = len(accounts)
        accounts.update({a["id"]: Name(a["firstName"], a["lastName"]) for a in page})
        if len(accounts) != known + len(page):
            raise BenchmarkError("getUserAccounts gives an account twice")
        if len(page) < PAGE:
            return accounts
        after = page[-1]["id"]


def _query(endpoint: Endpoint, document: str, variables: Mapping[str, object]) -> dict[str, Any]:
    headers = {"Content-Type": "application/json"}
    if endpoint.token is not None:
        headers["Authorization"] = f"Bearer {endpoint.token}"
    request = urllib.request.Request(
        f"{'http' if endpoint.authority is None else 'https'}://{endpoint.host}:{endpoint.port}{endpoint.path}",
        data=json.dumps({"query": document, "variables": variables}).encode(),
        headers=headers,
    )
    tls = None if endpoint.authority is None else ssl.create_default_context(cafile=endpoint.authority)
    try:
        with urllib.request.urlopen(request, timeout=30, context=tls) as response:
            reply: dict[str, Any] = json.load(response)
    except urllib.error.HTTPError as error:
        raise BenchmarkError(f"a query was answered with {error.code}: {error.read(300)!r}") from error
    except (OSError, ValueError) as error:
        raise BenchmarkError(f"a query was not answered: {error}") from error
    if "errors" in reply:
        raise BenchmarkError(f"a query failed: {json.dumps(reply['errors'])[:300]}")
    data: dict[str, Any] = reply["data"]
    return data
