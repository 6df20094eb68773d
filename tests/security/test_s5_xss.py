"""Stored text stays as given and executes nowhere: byte-exact in JSON that no browser takes for a page, and shown as
text in the playground, by a real browser."""

# ruff: noqa: E501  # a value is one line, or one of many on it

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.client import Client, Reply
from tests.security.attacks import CREATE, PERSON
from tests.security.served import Served, served

QUERY = "query ($id: String!) { getUserAccount(userAccountId: $id) { firstName lastName } }"
MARK = "window.hacked=1"
PAYLOADS = [
    "<script>window.hacked=1</script>", "</script><script>hacked=1</script>", "<img src=x onerror=window.hacked=1>",
    "<svg/onload=window.hacked=1>", "<svg><script>hacked=1</script>", "\"><script>hacked=1</script>", "' onclick='hacked=1",
    "javascript:window.hacked=1", "<a href=javascript:hacked=1>x</a>", "<iframe srcdoc='<script>1</script>'>",
    "<!--<script>hacked=1//-->", "<style>@import'//evil.example'</style>", "<base href=//evil.example/>",
    "<meta http-equiv=refresh content=0;url=//e.ex>", "&lt;b&gt;", "&#x3c;script&#x3e;", "%3Cscript%3E", "<b>Bob</b>",
    "\\u003cscript\\u003e", "\\\"};hacked=1;//", "']);hacked=1;//", "${hacked=1}", "{{constructor.constructor('1')()}}",
    "<%= 7*7 %>", "#{7*7}", "[x](javascript:hacked=1)", "![x](//evil.example/x.png)", "`hacked=1`", "**bold**",
    '{"__proto__":{"a":1}}', "=HYPERLINK(\"//evil.example\")", "=cmd|' /C calc'!A0", "+1+1", "-1+1", "@SUM(1,1)",
    "<math><mtext><script>hacked=1</script>", "<details open ontoggle=hacked=1>", "<template><script>1</script>",
    "＜script＞hacked=1＜/script＞", "<ſcript>hacked=1</ſcript>", "O'Brien & Söhne <3",
]  # fmt: skip
SHOWN = PAYLOADS[:13]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("markup")) as running:
        yield running


async def stored(service: Served, text: str) -> tuple[str, str]:
    """The account of a person of this name, and the token that shows it."""
    reply = await service.graphql("command", CREATE, {"input": {**PERSON, "firstName": text, "lastName": text}})
    assert "errors" not in reply.json(), reply.body
    return reply.json()["data"]["createUserAccount"]["id"], reply.headers["kiseki-consistency-token"]


@pytest.mark.parametrize("text", PAYLOADS, ids=[f"{number}" for number, _ in enumerate(PAYLOADS)])
async def test_text_comes_back_as_given_in_what_no_browser_takes_for_a_page(service: Served, text: str) -> None:
    account, token = await stored(service, text)
    reply = await service.graphql("query", QUERY, {"id": account}, **{"kiseki-consistency-token": token})
    assert reply.json()["data"]["getUserAccount"] == {"firstName": text, "lastName": text}
    # Exact to the byte: neither escaped for a page nor cleaned of anything.
    assert json.dumps(text, ensure_ascii=False).encode() in reply.body
    no_page(reply)
    assert reply.headers["content-type"] == "application/json; charset=utf-8"


def no_page(reply: Reply) -> None:
    """What keeps a browser from showing, sniffing or framing an answer."""
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert reply.headers["x-frame-options"] == "DENY"
    assert "html" not in reply.headers["content-type"]


@pytest.mark.parametrize("api", ["command", "query"])
@pytest.mark.parametrize(
    ("method", "path", "body", "headers"),
    [
        ("POST", "/api/graphql", json.dumps({"query": f"{{ a<script>{MARK}</script> }}"}).encode(), {}),
        ("POST", "/api/graphql", json.dumps({"query": "{ a }", "operationName": "<script>"}).encode(), {}),
        ("POST", "/api/graphql", b"<script>window.hacked=1</script>", {}),
        ("GET", "/api/<script>window.hacked=1</script>", b"", {}),
        ("GET", "/api/nowhere?a=<script>", b"", {}),
        ("GET", "/api/health", b"", {"x-correlation-id": "<script>"}),
        ("POST", "/api/graphql", b"{}", {"content-type": "text/html", "accept": "text/html"}),
        ("POST", "/api/graphql", b"{}", {"idempotency-key": "<script>"}),
        ("DELETE", "/api/graphql", b"", {}),
    ],
)
async def test_no_answer_is_a_page_and_none_repeats_markup(
    service: Served, api: str, method: str, path: str, body: bytes, headers: dict[str, str]
) -> None:
    async with Client(service.port(api)) as client:
        reply = await client.request(method, path, body, {"content-type": "application/json", **headers})
    no_page(reply)
    assert b"<script" not in reply.body
    assert all("<" not in value for value in reply.headers.values())


async def test_separators_that_end_a_line_of_script_are_never_in_a_name(service: Served) -> None:
    for separator in "\u2028\u2029":
        reply = await service.graphql("command", CREATE, {"input": {**PERSON, "firstName": f"a{separator}b"}})
        errors = reply.json()["errors"][0]["extensions"]["errors"]
        assert [one["code"] for one in errors] == ["FORBIDDEN_CHARACTER"]
        assert separator.encode() not in reply.body


async def test_the_playground_has_a_policy_of_its_own_that_runs_only_its_files(service: Served) -> None:
    async with Client(service.port("query")) as client:
        reply = await client.request("GET", "/api/playground")
    assert reply.status == 200
    policy = dict(part.strip().partition(" ")[::2] for part in reply.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert "'unsafe-inline'" not in policy["script-src"]
    assert "'unsafe-eval'" not in policy["script-src"]
    assert "*" not in policy["script-src"]
    assert policy["frame-ancestors"] == "'none'"
    assert b"<script>" not in reply.body


def test_a_browser_shows_markup_as_text_and_runs_none_of_it(service: Served, tmp_path: Path) -> None:
    executable = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    if executable is None:
        pytest.skip("playground browser tests need Chromium (Debian package chromium)")
    from playwright.sync_api import sync_playwright

    accounts = [asyncio.run(stored(service, text)) for text in SHOWN]
    ids = json.dumps([account for account, _ in accounts])
    document = f"query Shown {{ getUserAccountsByIds(userAccountIds: {ids}) {{ firstName lastName }} }}"

    async def visible() -> None:
        await service.graphql("query", "{ __typename }", None, **{"kiseki-consistency-token": accounts[-1][1]})
        await service.graphql("query", document, None, **{"kiseki-consistency-token": accounts[-1][1]})

    asyncio.run(visible())
    flags = ["--no-sandbox", "--headless", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
             "--disable-background-networking", "--disable-component-update"]  # fmt: skip
    origin = f"http://127.0.0.1:{service.port('query')}"
    complaints: list[str] = []
    asked: set[str] = set()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=flags)
        page = browser.new_context().new_page()
        page.set_default_timeout(15_000)
        page.on("dialog", lambda dialog: complaints.append(dialog.message))
        page.on("request", lambda request: asked.add(request.url.split("/api/")[0].split(",")[0]))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.add_init_script(
            "window.violations = []; document.addEventListener('securitypolicyviolation',"
            " (event) => window.violations.push(event.effectiveDirective))"
        )
        page.goto(f"{origin}/api/playground")
        page.wait_for_selector(".graphiql-execute-button")
        page.click(".graphiql-query-editor .CodeMirror-lines")
        page.keyboard.press("Control+A")
        page.keyboard.insert_text(document)
        # The tab's name changes when the playground has read what was typed.
        page.locator(".graphiql-tab").get_by_text("Shown", exact=True).wait_for()
        page.click(".graphiql-execute-button")
        page.locator(".result-window").get_by_text("firstName").first.wait_for()
        result = page.locator(".result-window .CodeMirror-code").inner_text()
        for text in SHOWN[:4]:
            assert json.dumps(text, ensure_ascii=False) in result
        assert page.evaluate("window.hacked") is None
        assert page.evaluate("window.violations") == []
        assert (
            page.locator(".result-window script, .result-window img, .result-window iframe, .result-window a").count()
            == 0
        )
        # An answer of the API itself, opened as a page, is text too, and may run nothing.
        page.goto(f"{origin}/api/%3Cscript%3Ewindow.hacked=1%3C/script%3E")
        assert page.evaluate("window.hacked") is None
        browser.close()
    assert complaints == []
    assert {one for one in asked if not one.startswith("data:")} == {origin}
