"""The pure parts of the benchmarks, and the load generator against servers that misbehave."""

import asyncio
import base64
import itertools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from benchmarks.baseline_environment import baseline_digest
from benchmarks.check import differences
from benchmarks.errors import BenchmarkError
from benchmarks.figures import Figure, Round, figure_ratio, median_between, percentile, ratio, summarise
from benchmarks.http_response import Response, ResponseError, parse_response
from benchmarks.kiseki_target import LAG_METRIC, lag_in
from benchmarks.load import LoadResult, Plan, run
from benchmarks.secured_targets import secured, unsecured
from benchmarks.security import OFF, ON, WITH_REDIS, Case, is_open, too_slow
from benchmarks.security_proof import HEADERS, LIMITS, prove_off, prove_on
from benchmarks.workload import CREATE_FIELD, Endpoint, Name, Requests, acknowledged_id, letters, names

FROZEN_BASELINE = "6c7a6bbc5e316c1063595f146dc112ae7563c0146d8f048f6a7743abb6f6730b"
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\ncontent-LENGTH: 5\r\n\r\nHello"


def one_round(speed: float, *, server_cpu: float | None = None, catch_up_seconds: float | None = None) -> Round:
    return Round(
        operations_per_second=speed,
        p50_ms=1.0,
        p99_ms=2.0,
        operations=10,
        creates=5,
        renames=5,
        load_cpu=0.5,
        server_cpu=server_cpu,
        catch_up_seconds=catch_up_seconds,
    )


class TestFigures:
    @pytest.mark.parametrize(("share", "expected"), [(0.5, 50), (0.99, 99), (1.0, 100), (0.001, 1)])
    def test_a_percentile_is_the_nearest_rank(self, share: float, expected: int) -> None:
        assert percentile(range(1, 101), share) == expected

    def test_a_single_value_is_every_percentile(self) -> None:
        assert percentile([7.0], 0.5) == percentile([7.0], 0.99) == 7.0

    def test_no_values_have_no_percentile(self) -> None:
        with pytest.raises(ValueError, match="no values"):
            percentile([], 0.5)

    def test_a_ratio_is_taken_within_rounds_so_that_a_slow_machine_cancels_out(self) -> None:
        assert ratio([one_round(100), one_round(10), one_round(90)], [one_round(50), one_round(5), one_round(40)]) == 2

    def test_ratios_are_given_only_to_references_that_were_measured(self) -> None:
        summaries = summarise(
            {"fast": [one_round(30), one_round(10), one_round(20)], "slow": [one_round(5)] * 3}, ["slow", "absent"]
        )
        assert summaries["fast"].operations_per_second == 20
        assert (summaries["fast"].slowest_round, summaries["fast"].fastest_round) == (10, 30)
        assert summaries["fast"].ratios == {"slow": 4}
        assert summaries["slow"].ratios == {"slow": 1}

    def test_speed_per_cpu_second_discounts_what_others_took_of_the_core(self) -> None:
        summary = summarise({"a": [one_round(100, server_cpu=0.5, catch_up_seconds=3)]}, [])["a"]
        assert (summary.operations_per_cpu_second, summary.catch_up_seconds) == (200, 3)
        assert summarise({"a": [one_round(100)]}, [])["a"].operations_per_cpu_second is None


def figures(*speeds: float) -> list[Figure]:
    return [Figure(speed, p50_ms=1.0, p99_ms=2.0, operations_per_cpu_second=None) for speed in speeds]


class TestSecurityCosts:
    def test_a_ratio_is_that_of_neighbours(self) -> None:
        assert figure_ratio(figures(80, 8, 70), figures(100, 10, 100)) == 0.8

    def test_slices_without_a_neighbour_are_no_ratio(self) -> None:
        with pytest.raises(ValueError, match="zip"):
            figure_ratio(figures(80, 8), figures(100))

    @pytest.mark.parametrize(("speed", "problems"), [(100.0, 0), (75.0, 0), (74.9, 1), (10.0, 1)])
    def test_three_quarters_of_the_speed_have_to_be_kept(self, speed: float, problems: int) -> None:
        measured: dict[Case, list[Figure]] = {
            (OFF, "queries", 16): figures(100),
            (ON, "queries", 16): figures(speed),
            (WITH_REDIS, "queries", 16): figures(1),
        }
        assert len(too_slow(measured)) == problems

    def test_every_kind_and_number_of_callers_is_held_to_it(self) -> None:
        cases = [("commands", 16), ("commands", 64), ("queries", 64)]
        measured: dict[Case, list[Figure]] = {}
        for kind, callers in cases:
            measured[OFF, kind, callers] = figures(100)
            measured[ON, kind, callers] = figures(74 if callers == 64 else 90)
        assert [problem.split(":")[0] for problem in too_slow(measured)] == [
            "commands with 64 callers",
            "queries with 64 callers",
        ]

    def test_the_median_lies_between_values_around_the_middle(self) -> None:
        assert median_between([5.0]) == (5.0, 5.0)
        assert median_between([1.0, 2.0]) == (1.0, 2.0)
        assert median_between([float(number) for number in range(100)]) == (40.0, 59.0)

    @pytest.mark.parametrize(
        ("speeds", "is_it"),
        [
            ([90] * 16, False),
            ([50] * 16, False),
            ([60, 90] * 8, True),
            ([60] * 3 + [90] * 13, False),
            ([75] * 16, False),
        ],
    )
    def test_it_is_open_while_the_bound_lies_between(self, speeds: list[float], is_it: bool) -> None:
        measured: dict[Case, list[Figure]] = {
            (OFF, "queries", 16): figures(*[100] * 16),
            (WITH_REDIS, "queries", 16): figures(*[60, 90] * 8),
            (ON, "queries", 16): figures(*speeds),
        }
        assert is_open(measured) is is_it

    def test_the_secured_server_is_a_production_with_nothing_left_out(self, tmp_path: Path) -> None:
        made = secured(tmp_path, subjects=4)
        settings = made.target.environment
        assert settings["KISEKI_PROFILE"] == "production"
        assert len(set(made.tokens)) == 4
        heads = [base64.urlsafe_b64decode(token.partition(".")[0] + "==") for token in made.tokens]
        assert [json.loads(head)["alg"] for head in heads] == ["HS256", "ES256"] * 2
        assert made.target.query is not None
        assert made.target.query.token in made.tokens

    def test_over_tls_the_load_trusts_one_authority_and_no_proxy_is_believed(self, tmp_path: Path) -> None:
        made = secured(tmp_path, subjects=1, tls=True)
        assert made.target.command.authority is not None
        assert Path(made.target.command.authority).exists()
        assert "KISEKI_TLS_PROXY" not in made.target.environment

    def test_without_security_nobody_brings_a_token(self, tmp_path: Path) -> None:
        made = unsecured(tmp_path)
        assert (made.tokens, made.target.command.token) == ((), None)


@contextmanager
def answering(
    *, unauthorized: int = 401, misdirected: int = 400, headers: Sequence[str] = (*HEADERS, *LIMITS, "www-authenticate")
) -> Iterator[Endpoint]:
    """A server that lets in who brings `good`, or answers otherwise as it is told."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            known = self.headers["Authorization"] == "Bearer good"
            own = (self.headers["Host"] or "").startswith("127.0.0.1:")
            self.send_response(misdirected if not own else 200 if known else unauthorized)
            for name in headers:
                self.send_header(name, "x")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield Endpoint(server.server_port, token="good")
        finally:
            server.shutdown()
            thread.join()


class TestProof:
    def test_a_server_with_everything_on_is_on_and_not_off(self) -> None:
        with answering() as endpoint:
            prove_on(endpoint)
            with pytest.raises(BenchmarkError, match="no token: 401 and not 200"):
                prove_off(endpoint)

    def test_a_server_with_everything_off_is_off_and_not_on(self) -> None:
        with answering(unauthorized=200, misdirected=200, headers=()) as endpoint:
            prove_off(endpoint)
            with pytest.raises(BenchmarkError, match="strict-transport-security is missing"):
                prove_on(endpoint)

    @pytest.mark.parametrize("missing", [*HEADERS, *LIMITS])
    def test_one_missing_header_is_found(self, missing: str) -> None:
        present = [name for name in (*HEADERS, *LIMITS, "www-authenticate") if name != missing]
        with answering(headers=present) as endpoint, pytest.raises(BenchmarkError, match=f"{missing} is missing"):
            prove_on(endpoint)

    def test_a_server_that_believes_everybody_is_not_on(self) -> None:
        with answering(unauthorized=200) as endpoint, pytest.raises(BenchmarkError, match="no token: 200 and not 401"):
            prove_on(endpoint)

    def test_a_server_for_any_host_is_not_on(self) -> None:
        with answering(misdirected=200) as endpoint, pytest.raises(BenchmarkError, match="another host: 200"):
            prove_on(endpoint)

    @pytest.mark.parametrize("present", [*HEADERS, *LIMITS])
    def test_a_server_with_a_security_header_is_not_off(self, present: str) -> None:
        server = answering(unauthorized=200, misdirected=200, headers=[present])
        with server as endpoint, pytest.raises(BenchmarkError, match=f"{present} is there"):
            prove_off(endpoint)


class TestResponses:
    def test_a_response_is_complete_only_with_its_last_byte(self) -> None:
        assert [parse_response(OK[:end]) for end in range(len(OK))] == [None] * len(OK)
        assert parse_response(OK) == Response(status=200, body=b"Hello", size=len(OK))

    def test_bytes_of_the_next_response_are_left_alone(self) -> None:
        assert parse_response(OK + OK[:9]) == Response(status=200, body=b"Hello", size=len(OK))

    def test_an_empty_body_and_an_error_status_are_read(self) -> None:
        response = parse_response(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
        assert response is not None
        assert (response.status, response.body) == (503, b"")

    @pytest.mark.parametrize(
        "head",
        [
            b"HTTP/1.1 200 OK\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"HTTP/1.1 100 Continue\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 2x0 OK\r\nContent-Length: 0\r\n\r\n",
            b"220 smtp.example.com\r\nContent-Length: 0\r\n\r\n",
        ],
    )
    def test_what_it_cannot_read_is_an_error(self, head: bytes) -> None:
        with pytest.raises(ResponseError):
            parse_response(head)


class TestWorkload:
    def test_letters_give_a_different_word_for_every_number(self) -> None:
        words = [letters(number) for number in range(30_000)]
        assert len(set(words)) == len(words)
        assert all(word.isalpha() and word.isascii() for word in words)

    def test_a_request_is_http_with_a_graphql_body_and_the_token(self) -> None:
        requests = Requests(Endpoint(port=80, token="abc"))
        (create, first), (rename, second) = requests.create(), requests.rename("id-1")
        head, _, body = create.partition(b"\r\n\r\n")
        assert head.startswith(b"POST /api/graphql HTTP/1.1\r\nHost: 127.0.0.1:80\r\n")
        assert b"\r\nAuthorization: Bearer abc\r\n" in head
        assert head.endswith(b"\r\nContent-Length: %d" % len(body))
        assert json.loads(body)["variables"]["input"]["firstName"] == first.first
        assert json.loads(rename.partition(b"\r\n\r\n")[2])["variables"]["input"]["userAccountId"] == "id-1"
        assert first != second

    def test_a_query_names_the_account(self) -> None:
        body = Requests(Endpoint(port=80)).query('id-"1"').partition(b"\r\n\r\n")[2]
        assert json.loads(body)["variables"] == {"id": 'id-"1"'}

    def test_names_of_different_slices_differ(self) -> None:
        first, second = ({next(given) for _ in range(1_000)} for given in (names(0), names(1_000)))
        assert not first & second

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"[]",
            b'{"data":null}',
            b'{"data":{"createUserAccount":null},"errors":[{"message":"no"}]}',
            b'{"data":{"createUserAccount":{"id":"a"}},"errors":[]}',
            b'{"data":{"createUserAccount":{"id":""}}}',
            b'{"data":{"createUserAccount":{"id":1}}}',
            b'{"data":{"renameUserAccount":{"id":"a"}}}',
        ],
    )
    def test_a_reply_without_a_clean_id_is_no_acknowledgement(self, body: bytes) -> None:
        with pytest.raises(ValueError):  # noqa: PT011
            acknowledged_id(body, CREATE_FIELD)

    def test_the_id_of_a_clean_reply(self) -> None:
        assert acknowledged_id(b'{"data":{"createUserAccount":{"id":"a"}}}', CREATE_FIELD) == "a"


class TestCheck:
    ACKNOWLEDGED = {"1": Name("Ada", "L"), "2": Name("Bob", "M")}  # noqa: RUF012

    def test_the_same_accounts_are_fine(self) -> None:
        assert differences(self.ACKNOWLEDGED, dict(self.ACKNOWLEDGED)) == []

    @pytest.mark.parametrize(
        "found",
        [
            {"1": Name("Ada", "L")},
            {"1": Name("Ada", "L"), "2": None},
            {"1": Name("Ada", "L"), "2": Name("Old", "M")},
            {"1": Name("Ada", "L"), "2": Name("Bob", "M"), "3": Name("Eve", "N")},
        ],
    )
    def test_a_lost_stale_or_surplus_account_is_found(self, found: dict[str, Name | None]) -> None:
        assert len(differences(self.ACKNOWLEDGED, found)) == 1


class TestLag:
    def test_the_lag_is_the_sum_over_projections(self) -> None:
        page = f'# TYPE {LAG_METRIC} gauge\n{LAG_METRIC}{{projection="a"}} 2.0\n{LAG_METRIC}{{projection="b"}} 3.0\n'
        assert lag_in(page) == 5

    def test_a_page_without_the_metric_is_not_lag_zero(self) -> None:
        with pytest.raises(BenchmarkError):
            lag_in(f"{LAG_METRIC}_other 0.0\n")


def test_the_baseline_is_frozen() -> None:
    """Results before and after a change of the baseline cannot be compared: make another baseline instead."""
    assert baseline_digest() == FROZEN_BASELINE


def ok(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


def load(
    answer: Callable[[int], bytes],
    *,
    connections: int = 2,
    tokens: Sequence[str] = (),
    accounts: Sequence[str] = (),
    heads: set[bytes] | None = None,
) -> LoadResult:
    """Loads a server that gives answer(n) to its n-th request; empty bytes close the connection. `heads` takes the
    Authorization headers."""

    async def main() -> LoadResult:
        numbers = itertools.count()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                while True:
                    head = await reader.readuntil(b"\r\n\r\n")
                    await reader.readexactly(int(head.rpartition(b": ")[2]))
                    if heads is not None:
                        heads.update(line for line in head.split(b"\r\n") if line.startswith(b"Authorization"))
                    reply = answer(next(numbers))
                    if not reply:
                        break
                    for part in (reply[:20], reply[20:]):
                        writer.write(part)
                        await writer.drain()
                        await asyncio.sleep(0)
            except (asyncio.IncompleteReadError, ConnectionError):
                pass
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        plan = Plan(
            Endpoint(port),
            os.getpid(),
            connections=connections,
            warm_up_seconds=0.02,
            seconds=0.1,
            tokens=tokens,
            accounts=accounts,
        )
        async with server:
            return await run(plan)

    return asyncio.run(main())


def good(number: int) -> bytes:
    fields = (f'"{name}":{{"id":"{number}"}}' for name in ("createUserAccount", "renameUserAccount"))
    return ok(f'{{"data":{{{",".join(fields)}}}}}'.encode())


class TestLoad:
    def test_half_of_the_operations_create_and_every_acknowledged_account_is_known(self) -> None:
        result = load(good)
        assert (result.failures, result.messages) == (0, [])
        assert result.operations == result.creates + result.renames > 10
        assert abs(result.creates - result.renames) <= 2
        assert len(result.accounts) == result.acknowledged_creates >= result.creates
        assert 0 < result.p50_ms <= result.p99_ms

    def test_tokens_go_round_among_the_connections(self) -> None:
        heads: set[bytes] = set()
        load(good, connections=4, tokens=["abc", "def"], heads=heads)
        assert heads == {b"Authorization: Bearer abc", b"Authorization: Bearer def"}

    def test_queries_ask_for_the_accounts_and_change_nothing(self) -> None:
        result = load(lambda _: ok(b'{"data":{"getUserAccount":{"id":"a"}}}'), accounts=["a"])
        assert (result.failures, result.messages) == (0, [])
        assert result.operations > 10
        assert (result.creates, result.renames, result.accounts) == (0, 0, {})

    @pytest.mark.parametrize("body", [b'{"data":{"getUserAccount":null}}', b'{"data":{"getUserAccount":{"id":"b"}}}'])
    def test_no_account_or_another_one_is_a_failure(self, body: bytes) -> None:
        assert load(lambda _: ok(body), accounts=["a"]).failures > 0

    @pytest.mark.parametrize(
        "bad",
        [
            b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 2\r\n\r\n{}",
            ok(b'{"data":{"createUserAccount":null,"renameUserAccount":null},"errors":[{"message":"no"}]}'),
            ok(b"{}") + b"HTTP/1.1 ",
            b"HTTP/1.1 200 OK\r\n\r\n",
            b"",
        ],
    )
    def test_one_bad_answer_is_counted_as_a_failure(self, bad: bytes) -> None:
        result = load(lambda number: bad if number == 5 else good(number))
        assert result.failures == 1
        assert len(result.messages) == 1
