"""The pure parts of the benchmarks, and the load generator against servers that misbehave."""

import asyncio
import itertools
import json
import os
from collections.abc import Callable

import pytest

from benchmarks.baseline_environment import baseline_digest
from benchmarks.check import differences
from benchmarks.errors import BenchmarkError
from benchmarks.figures import Round, percentile, ratio, summarise
from benchmarks.http_response import Response, ResponseError, parse_response
from benchmarks.kiseki_target import LAG_METRIC, lag_in
from benchmarks.load import LoadResult, Plan, run
from benchmarks.workload import CREATE_FIELD, Endpoint, Name, Requests, acknowledged_id, letters

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


def load(answer: Callable[[int], bytes], *, connections: int = 2) -> LoadResult:
    """Loads a server that gives answer(n) to its n-th request; empty bytes close the connection."""

    async def main() -> LoadResult:
        numbers = itertools.count()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                while True:
                    head = await reader.readuntil(b"\r\n\r\n")
                    await reader.readexactly(int(head.rpartition(b": ")[2]))
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
        plan = Plan(Endpoint(port), os.getpid(), connections=connections, warm_up_seconds=0.02, seconds=0.1)
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
