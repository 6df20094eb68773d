"""The playground in a real Chromium, against a small GraphQL server of its own.

Needs Chromium (Debian package `chromium`) and the Python package `playwright`; without them the
browser tests are skipped and say what is missing. The first tests need neither.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from threading import Thread
from typing import TYPE_CHECKING, Final, get_args
from urllib.parse import urlsplit

import pytest
from graphql import GraphQLSchema, build_schema, graphql_sync

from kiseki.service.playground import CONTENT_SECURITY_POLICY, Api, Asset, Playground

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM_NAMES: Final = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM_FLAGS: Final = (
    "--no-sandbox",
    "--headless",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
DESKTOP: Final = (1280, 800)
PHONE: Final = (390, 844)
CONSISTENCY_TOKEN: Final = "kiseki-consistency-token"
INTROSPECTION: Final = "IntrospectionQuery"
GOOD_BEARER: Final = "Bearer a-good-token"
# GraphiQL's dialogs have a title but no description, which its dialog library remarks upon.
HARMLESS_CONSOLE: Final = "Missing `Description` or `aria-describedby"

ACCOUNT_ID: Final = "01J00000000000000000000001"
COMMAND_SDL: Final = """
type Query { "The API's name." api: String! }
input CreateUserAccountInput { firstName: String! lastName: String! emailAddress: String! }
"The stream that was written." type UserAccountReference { id: String! }
type Mutation {
  "Opens an account."
  createUserAccount(input: CreateUserAccountInput!): UserAccountReference!
}
"""
QUERY_SDL: Final = """
"An account as it is **read**."
type UserAccount { id: String! fullName: String! createdAt: String! }
type Query {
  "Oldest first."
  getUserAccounts(first: Int = 100, after: String): [UserAccount!]!
}
"""


# The files


def test_each_api_has_its_page() -> None:
    playground = Playground()
    for api in get_args(Api):
        page = playground.page(api)
        assert page.content_type == "text/html; charset=utf-8"
        assert page.content_security_policy == CONTENT_SECURITY_POLICY
        assert f'data-api="{api}"' in page.body.decode()
        assert "{{" not in page.body.decode()


def test_pages_need_nothing_but_own_files() -> None:
    playground = Playground()
    for api in get_args(Api):
        html = playground.page(api).body.decode()
        references = re.findall(r'(?:src|href)="([^"]*)"', html)
        own = [name for name in references if name != "data:,"]
        assert len(own) == 6
        for reference in own:
            prefix, _, name = reference.rpartition("/")
            assert prefix == "/api/playground"
            assert playground.asset(name) is not None
        assert not re.search(r"<style|style=|\son\w+=|<script>", html)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "index.html",
        "__init__.py",
        "vendor/graphiql.min.js",
        "vendor/VENDORED.md",
        "../__init__.py",
        "../../../../etc/passwd",
        "/etc/passwd",
        "playground.js\0",
        "%2e%2e/__init__.py",
        "PLAYGROUND.JS",
    ],
)
def test_other_names_are_not_served(name: str) -> None:
    assert Playground().asset(name) is None


def test_vendored_files_are_the_documented_ones() -> None:
    vendor = files("kiseki.service.playground").joinpath("vendor")
    document = vendor.joinpath("VENDORED.md").read_text()
    sums = re.findall(r"(?m)^([0-9a-f]{64})  (\S+)$", document)
    documented = {name: digest for digest, name in sums}
    found = {
        entry.name: hashlib.sha256(entry.read_bytes()).hexdigest()
        for entry in vendor.iterdir()
        if entry.name != "VENDORED.md"
    }
    assert found == documented


# A server to look at


@dataclass(frozen=True, kw_only=True)
class Received:
    """One POST to /api/graphql; header names are in lower case."""

    headers: dict[str, str]
    operation_name: str | None


@dataclass(kw_only=True)
class Service:
    """A running server for one API; `received` grows with each POST."""

    api: Api
    origin: str = ""
    bearer: str | None = None
    received: list[Received] = field(default_factory=list)

    def operations(self) -> list[Received]:
        return [post for post in self.received if post.operation_name != INTROSPECTION]

    def introspections(self) -> list[Received]:
        return [post for post in self.received if post.operation_name == INTROSPECTION]


def _handler(service: Service) -> type[BaseHTTPRequestHandler]:
    playground = Playground()
    schema: GraphQLSchema = build_schema(COMMAND_SDL if service.api == "command" else QUERY_SDL)
    root: dict[str, Callable[..., object]] = {
        "api": lambda info: service.api,
        "createUserAccount": lambda info, **arguments: {"id": ACCOUNT_ID},
        "getUserAccounts": lambda info, **arguments: [
            {"id": ACCOUNT_ID, "fullName": "Ada Lovelace", "createdAt": "2024-01-01T00:00:00Z"}
        ],
    }

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: object) -> None:
            """Quiet."""

        def do_GET(self) -> None:
            found: Asset | None
            if self.path in ("/api/playground", "/api/graphql"):
                found = playground.page(service.api)
            else:
                found = playground.asset(self.path.removeprefix("/api/playground/"))
            if found is None:
                self.answer(404, "text/plain", b"")
            else:
                policy = found.content_security_policy
                self.answer(200, found.content_type, found.body, policy=policy)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            headers = {name.lower(): value for name, value in self.headers.items()}
            operation_name = body.get("operationName")
            service.received.append(Received(headers=headers, operation_name=operation_name))
            if service.bearer is not None and headers.get("authorization") != service.bearer:
                problem = {"status": 401, "title": "Unauthorized", "errors": [{"message": "Who?"}]}
                self.answer(401, "application/problem+json", json.dumps(problem).encode())
                return
            result = graphql_sync(
                schema,
                body["query"],
                root,
                variable_values=body.get("variables"),
                operation_name=operation_name,
            )
            number = len(service.operations())
            self.answer(
                200,
                "application/json",
                json.dumps(result.formatted).encode(),
                token=f"v1.{number}" if body["query"].lstrip().startswith("mutation") else None,
            )

        def answer(
            self,
            status: int,
            content_type: str,
            body: bytes,
            *,
            policy: str = "default-src 'none'; frame-ancestors 'none'",
            token: str | None = None,
        ) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Security-Policy", policy)
            self.send_header("X-Content-Type-Options", "nosniff")
            self.send_header("Cache-Control", "no-store")
            if token is not None:
                self.send_header("Kiseki-Consistency-Token", token)
            self.end_headers()
            self.wfile.write(body)

    return Handler


@contextmanager
def serving(api: Api, *, bearer: str | None = None) -> Iterator[Service]:
    service = Service(api=api, bearer=bearer)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(service))
    service.origin = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=5)


# A browser to look with


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if importlib.util.find_spec("playwright") is None:
        pytest.skip("playground browser tests need the Python package playwright")
    executable = next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)
    if executable is None:
        pytest.skip("playground browser tests need Chromium (Debian package chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=executable, args=list(CHROMIUM_FLAGS))
        yield launched
        launched.close()


@dataclass(kw_only=True)
class Window:
    """A page with what went wrong in it and where it sent requests."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    origins: set[str] = field(default_factory=set)

    def run(self) -> None:
        self.page.click(".graphiql-execute-button")

    def result(self, text: str) -> None:
        """Waits until the result shows this text."""
        self.page.locator(".result-window").get_by_text(text).first.wait_for()

    def write(self, editor: str, text: str) -> None:
        """Replaces the text of the editor inside the element that this CSS selector finds."""
        self.page.click(f"{editor} .CodeMirror-lines")
        self.page.keyboard.press("Control+A")
        self.page.keyboard.insert_text(text)

    def write_document(self, name: str, text: str) -> None:
        """Replaces the document by this one operation; GraphiQL notices its name a bit later."""
        self.write(".graphiql-query-editor", text)
        self.page.locator(".graphiql-tab").get_by_text(name, exact=True).wait_for()

    def write_headers(self, headers: dict[str, str]) -> None:
        self.page.get_by_role("button", name="Headers", exact=True).click()
        self.write(".graphiql-editor-tool .graphiql-editor:not(.hidden)", json.dumps(headers))

    def stored(self) -> object:
        """How much the page left in the browser: local, session, databases, cookies."""
        return self.page.evaluate(
            "async () => [localStorage.length, sessionStorage.length,"
            " (await indexedDB.databases()).length, document.cookie]"
        )


@contextmanager
def opened(
    browser: Browser,
    service: Service,
    *,
    size: tuple[int, int] = DESKTOP,
    path: str = "/api/playground",
) -> Iterator[Window]:
    """Opens the playground in a fresh profile and waits until it is ready to run a document."""
    context = browser.new_context(viewport={"width": size[0], "height": size[1]})
    page = context.new_page()
    page.set_default_timeout(10_000)
    window = Window(page=page)

    def console(kind: str, text: str) -> None:
        if HARMLESS_CONSOLE not in text:
            window.complaints.append(f"{kind}: {text}")

    def violation(report: object) -> None:
        window.complaints.append(f"policy: {report}")

    page.on("console", lambda message: console(message.type, message.text))
    page.on("pageerror", lambda error: console("page error", str(error)))
    page.on("request", lambda request: window.origins.add(_origin(request.url)))
    page.expose_function("reportViolation", violation)
    page.add_init_script(
        "document.addEventListener('securitypolicyviolation', (event) =>"
        " window.reportViolation(`${event.effectiveDirective} ${event.blockedURI}`))"
    )
    page.goto(service.origin + path)
    page.wait_for_selector(".graphiql-execute-button")
    try:
        yield window
    finally:
        context.close()


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return "data:" if parts.scheme == "data" else f"{parts.scheme}://{parts.netloc}"


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize(
    ("api", "answer", "root", "documented"),
    [
        ("command", ACCOUNT_ID, "Mutation", "createUserAccount"),
        ("query", "Ada Lovelace", "Query", "getUserAccounts"),
    ],
    ids=["command", "query"],
)
def test_the_default_document_runs_and_nothing_complains(
    browser: Browser, api: Api, answer: str, root: str, documented: str, size: tuple[int, int]
) -> None:
    with serving(api) as service, opened(browser, service, size=size) as window:
        page = window.page
        assert page.title() == f"kiseki {api} API playground"
        window.run()
        window.result(answer)

        page.get_by_label("Show Documentation Explorer").click()
        page.locator(".graphiql-doc-explorer").get_by_text(root, exact=True).click()
        page.locator(".graphiql-doc-explorer").get_by_text(documented, exact=True).wait_for()
        page.get_by_label("Hide Documentation Explorer").click()
        page.get_by_label("Show History").click()
        page.get_by_label("Hide History").click()
        for dialog in ("Open settings dialog", "Open short keys dialog"):
            page.get_by_label(dialog).click()
            page.get_by_role("dialog").wait_for()
            page.keyboard.press("Escape")
            page.get_by_role("dialog").wait_for(state="detached")
        page.get_by_label("New tab").click()
        page.get_by_label("Prettify query (Shift-Ctrl-P)").hover()

        assert window.complaints == []
        assert window.origins - {"data:"} == {service.origin}
        assert window.stored() == [0, 0, 0, ""]
        assert len(service.introspections()) == 1


def test_completion_descriptions_and_error_marks_work_under_the_policy(browser: Browser) -> None:
    with serving("query") as service, opened(browser, service) as window:
        page = window.page
        window.write_document("Find", "query Find { getUserAccounts { id nothing } }")
        page.locator(".CodeMirror-lint-mark-error").first.hover()
        page.locator(".CodeMirror-lint-tooltip").get_by_text("Cannot query field").wait_for()
        page.locator(".graphiql-query-editor").get_by_text("getUserAccounts").hover()
        page.locator(".CodeMirror-info").get_by_text("Oldest first.").wait_for()
        window.write_document("Find", "query Find { getUserAccounts { } }")
        for _ in range(len(" } }")):
            page.keyboard.press("ArrowLeft")
        page.keyboard.press("Control+Space")
        page.locator(".CodeMirror-hints").get_by_text("fullName").wait_for()
        page.keyboard.press("Escape")
        page.keyboard.press("Control+F")
        page.locator(".CodeMirror-search-field").wait_for()
        assert window.complaints == []
        assert window.origins - {"data:"} == {service.origin}


def test_get_graphql_shows_the_same_page(browser: Browser) -> None:
    with serving("query") as service, opened(browser, service, path="/api/graphql") as window:
        window.run()
        window.result("Ada Lovelace")
        assert window.complaints == []


def test_the_policy_stops_inline_script_and_other_styles(browser: Browser) -> None:
    """Shows that the complaints asserted empty elsewhere would be seen."""
    with serving("query") as service, opened(browser, service) as window:
        window.page.evaluate(
            """() => {
              const script = document.createElement("script");
              script.textContent = "window.injected = true";
              document.head.append(script);
              const style = document.createElement("style");
              style.textContent = "body { color: red }";
              document.head.append(style);
              new Image().src = "http://127.0.0.2:9/pixel.png";
            }"""
        )
        window.page.wait_for_timeout(200)
        assert window.page.evaluate("window.injected") is None
        violated = {line for line in window.complaints if line.startswith("policy:")}
        assert violated == {
            "policy: script-src-elem inline",
            "policy: style-src-elem inline",
            "policy: img-src http://127.0.0.2:9/pixel.png",
        }


def test_a_phone_shows_editor_button_and_result_inside_the_screen(browser: Browser) -> None:
    with serving("query") as service, opened(browser, service, size=PHONE) as window:
        page = window.page
        window.run()
        window.result("Ada Lovelace")
        places = {
            name: page.locator(selector).bounding_box()
            for name, selector in (
                ("editor", ".graphiql-query-editor"),
                ("button", ".graphiql-execute-button"),
                ("result", ".result-window"),
            )
        }
        for name, box in places.items():
            assert box is not None, name
            assert box["x"] >= 0, name
            assert box["x"] + box["width"] <= PHONE[0], name
            assert box["y"] >= 0, name
            assert box["y"] + box["height"] <= PHONE[1], name
        for name in ("editor", "result"):
            box = places[name]
            assert box is not None, name
            assert box["width"] > 300, name
            assert box["height"] > 200, name
        editor, result = places["editor"], places["result"]
        assert editor is not None
        assert result is not None
        assert result["y"] >= editor["y"] + editor["height"]

        window.write_headers({"X-Typed": "yes"})
        with page.expect_response("**/api/graphql"):
            window.run()
        assert service.operations()[-1].headers["x-typed"] == "yes"


def test_queries_carry_the_token_of_the_last_mutation(browser: Browser) -> None:
    with serving("command") as service, opened(browser, service) as window:
        window.write_document("Before", "query Before { before: api }")
        window.run()
        window.result("before")
        window.write_document(
            "Write",
            'mutation Write { createUserAccount(input: {firstName: "A", lastName: "B",'
            ' emailAddress: "a@b.example"}) { id } }',
        )
        window.run()
        window.result(ACCOUNT_ID)
        window.write_document("After", "query After { after: api }")
        window.run()
        window.result("after")
        window.write_headers({"Kiseki-Consistency-Token": "v1.typed"})
        with window.page.expect_response("**/api/graphql"):
            window.run()

        sent = [post.headers.get(CONSISTENCY_TOKEN) for post in service.operations()]
        assert sent == [None, None, "v1.2", "v1.typed"]
        assert {post.headers["content-type"] for post in service.received} == {"application/json"}
        window.page.reload()
        window.page.wait_for_selector(".graphiql-execute-button")
        window.write_document("Reloaded", "query Reloaded { reloaded: api }")
        window.run()
        window.result("reloaded")
        assert CONSISTENCY_TOKEN not in service.operations()[-1].headers
        assert window.complaints == []


def test_a_bearer_token_loads_the_schema_and_stays_in_memory(browser: Browser) -> None:
    with (
        serving("query", bearer=GOOD_BEARER) as service,
        opened(browser, service) as window,
    ):
        window.run()
        window.result("Unauthorized")
        # The schema is asked for again because the credentials changed.
        with window.page.expect_response(lambda response: response.status == 200):
            window.write_headers({"Authorization": GOOD_BEARER})
        window.run()
        window.result("Ada Lovelace")
        window.page.get_by_label("Show Documentation Explorer").click()
        window.page.locator(".graphiql-doc-explorer").get_by_text("Query", exact=True).wait_for()

        tries = [post.headers.get("authorization") for post in service.introspections()]
        assert tries == [None, GOOD_BEARER]
        assert service.operations()[-1].headers["authorization"] == GOOD_BEARER
        assert "cookie" not in service.operations()[-1].headers
        window.page.wait_for_timeout(1_000)  # GraphiQL saves half a second after the last edit
        assert window.stored() == [0, 0, 0, ""]
        window.page.reload()
        window.page.wait_for_selector(".graphiql-execute-button")
        window.run()
        window.result("Unauthorized")
        assert "authorization" not in service.received[-1].headers


def test_an_unanswered_request_is_said(browser: Browser) -> None:
    with serving("query") as service, opened(browser, service) as window:
        window.page.route("**/api/graphql", lambda route: route.abort())
        window.run()
        window.result("The request was not answered")
        window.page.unroute("**/api/graphql")
        window.run()
        window.result("Ada Lovelace")
