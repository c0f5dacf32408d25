"""Clients that break the rules of HTTP, or of the API."""

import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.chaos.live import SHORT, Live

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    small = {"header_s": "0.4", "body_s": "0.4", "slow_reader_s": "0.4", "max_work": "1e6", "max_body_bytes": "65536"}
    with Live(tmp_path_factory.mktemp("data"), settings=small) as live:
        live.wait_ready()
        yield live


@pytest.mark.slow
def test_every_operation_answers_anything_as_documented_and_never_with_a_500(live: Live) -> None:
    calm = settings(max_examples=30, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    seen = set()
    for operation in schemathesis.openapi.from_url(f"{live.url}/openapi.json").get_all_operations():

        @calm
        @given(case=operation.ok().as_strategy())
        def _call(case: schemathesis.Case) -> None:
            seen.add((case.method, case.path))
            case.call_and_validate(checks=CHECKS)

        _call()
    assert len(seen) >= 22 and {("POST", "/predictions"), ("PUT", "/predictions/{prediction_id}")} <= seen
    assert live.http.get("/livez").status_code == 200


def sent(live: Live, content: bytes, wait_s: float = 5.0) -> bytes:
    """What comes back until the server closes the connection."""
    host, port = live.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=wait_s) as connection:
        connection.sendall(content)
        received = b""
        # A server that closes on what it has not read resets the connection.
        with suppress(ConnectionResetError):
            while chunk := connection.recv(65536):
                received += chunk
        return received


HEAD = b"POST /v1/videos HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    "content",
    [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: ", HEAD + b"Content-Length: 20\r\n\r\n{"],
    ids=["silent", "half a line", "half a head", "half a body"],
)
def test_who_sends_nothing_more_is_closed_on(live: Live, content: bytes) -> None:
    started = time.monotonic()
    answer = sent(live, content)
    assert time.monotonic() - started < 4
    assert answer == b"" or answer.startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize(
    "content",
    [
        HEAD + b"Content-Length: 99999999\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"10000\r\n" + b"x" * 65536 + b"\r\n10000\r\n" + b"x" * 65536,
    ],
    ids=["announced", "in chunks"],
)
def test_a_body_that_is_too_large_is_refused_before_it_is_read(live: Live, content: bytes) -> None:
    started = time.monotonic()
    answer = sent(live, content)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 413")
    assert time.monotonic() - started < 0.5


@pytest.mark.parametrize(
    "content",
    [
        b"\0" * 100 + b"\r\n\r\n",
        HEAD + b"Content-Length: -1\r\n\r\n{}",
        HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET / HTTP/1.1\r\n" + b"X-A: " + b"a" * 100_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    ],
)
def test_broken_http_is_refused_and_the_server_goes_on(live: Live, content: bytes) -> None:
    answer = sent(live, content)
    assert answer == b"" or int(answer.split()[1]) in (400, 403, 408, 413, 431)
    assert live.http.get("/livez").status_code == 200


def test_a_crowd_of_slow_clients_keeps_nobody_else_out(live: Live) -> None:
    host, port = live.url.removeprefix("http://").split(":")
    crowd = [socket.create_connection((host, int(port))) for _ in range(200)]
    for one in crowd:
        one.sendall(b"GET / HTTP/1.1\r\n")
    assert live.http.get("/livez").status_code == 200
    time.sleep(0.8)
    process = psutil.Process(live.process.pid)
    assert len([one for one in process.net_connections() if one.status == "ESTABLISHED"]) < 20
    for one in crowd:
        one.close()


@pytest.mark.slow
def test_who_reads_nothing_is_cut_off(live: Live) -> None:
    host, port = live.url.removeprefix("http://").split(":")
    number = 400
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((host, int(port)))
        # Far more than the buffers between both ends hold.
        connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * number)
        time.sleep(5)
        connection.settimeout(5)
        received = 0
        with suppress(ConnectionResetError):
            while chunk := connection.recv(2**20):
                received += len(chunk)
    assert 0 < received < number * len(live.http.get("/openapi.json").content)


def test_nothing_outside_the_folder_of_a_video_can_be_named(live: Live, tmp_path: Path) -> None:
    job_id = live.submit(SHORT).json()["id"]
    live.wait(job_id)
    for path in (
        "/v1/videos/..%2f..%2fjobs.sqlite/content",
        f"/v1/videos/{job_id}/../../jobs.sqlite",
        f"/v1/videos/{job_id}%00/content",
        f"/v1/videos/{job_id.upper()}/content",
    ):
        answer = sent(live, f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        assert answer.split()[1] == b"404" and b"sqlite" not in answer
    assert live.http.get(f"/v1/videos/{job_id}/content?variant=latents").status_code == 400
    assert live.http.get(f"/v1/videos/{job_id}/content?variant=../x").status_code == 400
