"""Bytes that are no sound HTTP: each is refused, or answered as what it says, and the server goes on."""

import socket
from collections.abc import Iterator
from contextlib import suppress
from itertools import product

import psutil
import pytest

from tests.chaos.live import SHORT, Live

pytestmark = pytest.mark.slow

GET, POST = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n", b"POST /v1/videos HTTP/1.1\r\nHost: localhost\r\n"
JSON = POST + b"Content-Type: application/json\r\n"
BODY = b'{"prompt": "a"}'

LINES = [
    method + b" " + target + b" " + version + b"\r\nHost: localhost\r\n\r\n"
    for method, target, version in product(
        [b"GET", b"get", b"G\0T", b"PRI", b"CONNECT"],
        [
            b"/livez",
            b"*",
            b"livez",
            b"http://evil.example/livez",
            b"/%ff%fe",
            b"/\xff",
            b"//livez",
            b"/" + b"a" * 70_000,
        ],
        [b"HTTP/1.1", b"HTTP/9.9"],
    )
]
BROKEN_LINES = [
    line + b"\r\n\r\n"
    for line in (
        *(
            b"",
            b" ",
            b"GET",
            b"GET /livez",
            b"GET  /livez HTTP/1.1",
            b"GET /livez HTTP/1.1 x",
            b"GET\t/livez\tHTTP/1.1",
        ),
        *(
            b"\r\n\r\n\r\nGET /",
            b"\x16\x03\x01\x02\x00\x01\x00",
            b"PRI * HTTP/2.0",
            b"\x80\x01",
            b"SSH-2.0-x",
            b"\xff" * 99,
        ),
        *(b"GET /livez HTTP/1.1\nHost: localhost", b"GET /livez HTTP/1.1\rHost: localhost", b"GET /livez FTP/1.1"),
    )
]
HEADERS = [
    GET + header + b"\r\n\r\n"
    for header in (
        *(b"X", b": x", b" X: y", b"X : y", b"X\0: y", b"X: \0", b"X: a\r\n b", b"X: a\rb", b"X: a\nY: b", b"\xff: x"),
        *(b"X: " + b"a" * size for size in (10_000, 60_000, 70_000, 1_000_000)),
        *(b"\r\n".join(b"X-%d: y" % i for i in range(number)) for number in (100, 1000, 10_000)),
        *(
            b"Host: evil.example",
            b"Host:",
            b"Expect: 100-continue",
            b"Expect: x",
            b"Upgrade: websocket",
            b"Upgrade: h2c",
        ),
        *(
            b"Connection: Upgrade, HTTP2-Settings",
            b"TE: trailers",
            b"Trailer: Content-Length",
            b"Cookie: " + b"a=b;" * 5000,
        ),
        *(
            b"Authorization: " + value
            for value in (b"", b"Bearer", b"Bearer \xff", b"Basic Og==", b"Bearer " + b"a" * 9000)
        ),
        *(b"X-Forwarded-For: 127.0.0.1", b"X-HTTP-Method-Override: DELETE", b"Content-Type: " + b";" * 5000),
    )
]
LENGTHS = [
    JSON + b"Content-Length: " + length + b"\r\n\r\n" + BODY
    for length in (
        *(b"-1", b"+15", b"0x0f", b"1e1", b"15.0", b"", b" ", b"abc", b"15, 15", b"15, 16", b"9" * 30, b"9" * 5000),
        *(
            b"15\r\nContent-Length: 15",
            b"15\r\nContent-Length: 14",
            b"\xc2\xb2",
            b"15;",
            b"1 5",
            b"15\0",
            b"99999999999",
        ),
    )
]
CODINGS = [
    JSON + b"Transfer-Encoding: " + coding + b"\r\n\r\nf\r\n" + BODY + b"\r\n0\r\n\r\n"
    for coding in (
        *(
            b"chunked, chunked",
            b"identity",
            b"gzip",
            b"gzip, chunked",
            b"chunked, gzip",
            b"xchunked",
            b"chunked x",
            b"\0",
        ),
        *(
            b"Chunked",
            b" chunked",
            b"chunked\r\nTransfer-Encoding: identity",
            b"chunked\r\nContent-Length: 15",
            b"",
            b",",
        ),
        *(b"chunked;a=b", b"\tchunked", b"chunked\r\nContent-Length: 0", b'"chunked"', b"chunKed"),
    )
]
CHUNKS = [
    JSON + b"Transfer-Encoding: chunked\r\n\r\n" + chunks
    for chunks in (
        *(b"zz\r\n", b"-1\r\n", b"0x5\r\nhello\r\n", b"f" * 17 + b"\r\n", b"f" * 5000, b"5\rhello", b"5\nhello\n0\n\n"),
        *(
            b"5\r\nhelloworld\r\n0\r\n\r\n",
            b"5\r\nhe",
            b"5;" + b"a" * 70_000 + b"\r\n",
            b"\r\n",
            b"g\r\n",
            b" 5\r\nhello\r\n",
        ),
        *(
            b"5 \r\nhello\r\n0\r\n\r\n",
            b"0\r\nX: y\r\n\r\n",
            b"0\r\n" + b"X: y\r\n" * 20_000,
            b"0\r\nContent-Length: 5\r\n\r\n",
        ),
        *(
            b"1\r\n{\r\n" * 20_000,
            b"1\r\n \r\n" * 100_000 + b"0\r\n\r\n",
            b"7fffffffffffffff\r\nx",
            b"ffffffffffffffff\r\nx",
        ),
    )
]
RANGES = [
    b"bytes=" + ranges
    for ranges in (
        *(
            b"",
            b"-",
            b"0-",
            b"-1",
            b"-0",
            b"0-0",
            b"5-1",
            b"a-b",
            b"0-1,",
            b",0-1",
            b"0-1,0-1",
            b"--1",
            b"0--1",
            b"1-2-3",
        ),
        *(b"99999999999999999999-", b"-99999999999999999999", b"0-" + b"9" * 5000, b"0-1," * 5000, b"0-,-1", b"\xff"),
        *(b",".join(b"%d-%d" % (i, i) for i in range(number)) for number in (2, 50, 1000)),
    )
] + [b"lines=0-1", b"bytes", b"bytes 0-1", b"BYTES=0-1", b'bytes=0-1\r\nIf-Range: "x"', b"bytes=0-1\r\nIf-Range: x"]
PIPELINES = [
    (GET + b"\r\n") * 200,
    (GET + b"\r\n") * 3 + b"broken\r\n\r\n",
    JSON + b"Content-Length: 15\r\n\r\n" + BODY + BODY,
    JSON + b"Content-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + GET + b"\r\n",
    GET + b"Content-Length: 5\r\n\r\nhello" + GET + b"\r\n",
]
FORMS = [
    POST + b"Content-Type: multipart/form-data" + kind + b"\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    for kind, body in product(
        [b"", b"; boundary=", b"; boundary=a", b'; boundary="a', b"; boundary=" + b"a" * 200, b"; boundary=\xff"],
        [b"", b"--a", b"--a--", b"--a\r\n\r\n\r\n--a--", b"--a\r\n" * 10_000],
    )
]
CASES = [*LINES, *BROKEN_LINES, *HEADERS, *LENGTHS, *CODINGS, *CHUNKS, *PIPELINES, *FORMS]

REFUSALS = {400, 401, 403, 404, 405, 408, 409, 413, 415, 416, 417, 426, 431, 501, 503, 505}
"""501 and 505 say that a way of HTTP is not known here; 503 that there are too many connections."""


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    small = {"header_s": "0.5", "body_s": "0.5", "slow_reader_s": "1", "max_queue": "1000"}
    with Live(tmp_path_factory.mktemp("data"), settings=small) as live:
        live.wait_ready()
        yield live


def statuses(live: Live, content: bytes) -> list[int]:
    """Of all answers, until the server closes. Raises TimeoutError where it never does."""
    host, port = live.url.removeprefix("http://").split(":")
    received = b""
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        # A server that closes on what it has not read resets the connection.
        with suppress(ConnectionResetError, BrokenPipeError):
            connection.sendall(content)
        with suppress(ConnectionResetError, BrokenPipeError, OSError):
            connection.shutdown(socket.SHUT_WR)
        with suppress(ConnectionResetError):
            while chunk := connection.recv(2**16):
                received += chunk
    return [int(part[:3]) for part in received.split(b"HTTP/1.1 ")[1:] if part[:3].isdigit()]


def test_two_hundred_ways_to_break_http_break_nothing(live: Live) -> None:
    assert len(CASES) >= 200
    process = psutil.Process(live.process.pid)
    before = process.memory_info().rss
    for content in CASES:
        for status in statuses(live, content):
            assert status in REFUSALS or 200 <= status < 300, (status, content[:80])
    assert live.http.get("/livez").status_code == 200
    assert process.memory_info().rss - before < 50e6
    assert process.num_fds() < 60


def test_a_strange_range_is_served_whole_in_part_or_refused(live: Live) -> None:
    job = live.wait(live.submit(SHORT).json()["id"])
    head = f"GET /v1/videos/{job['id']}/content HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nRange: ".encode()
    for ranges in RANGES:
        for status in statuses(live, head + ranges + b"\r\n\r\n"):
            assert status in (200, 206, 400, 416, 431), (status, ranges[:80])
    assert live.http.get("/livez").status_code == 200


def test_no_body_that_was_cut_short_makes_a_job(live: Live) -> None:
    before = {job["id"] for job in live.http.get("/v1/videos?limit=100").json()["data"]}
    whole = JSON + b"Content-Length: 15\r\n\r\n" + BODY
    for length in range(1, len(whole)):
        assert not [status for status in statuses(live, whole[:length]) if status < 400]
    assert {job["id"] for job in live.http.get("/v1/videos?limit=100").json()["data"]} == before
