"""Somebody who is sent something, and answers as badly as it goes."""

import json
import socketserver
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Heard:
    """One request."""

    path: str
    headers: dict[str, str]
    content: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.content)


@dataclass(kw_only=True)
class Receiver:
    """Answers each request with the next of `answers`, and the last one again and again.

    An answer is a status, bytes to send as they are, or "hangs", "closes", "drips" or "huge".
    """

    port: int = 0
    answers: list[int | bytes | str] = field(default_factory=lambda: [200])
    heard: list[Heard] = field(default_factory=list)
    connections: int = 0
    num_sent: int = 0
    """Bytes of the last answer that were taken."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook?a=b"

    def wait(self, number: int, timeout_s: float = 10.0) -> Sequence[Heard]:
        """What was heard, once that is so many requests."""
        deadline = time.monotonic() + timeout_s
        while len(self.heard) < number:
            assert time.monotonic() < deadline, f"only {len(self.heard)} requests came"
            time.sleep(0.01)
        return list(self.heard)


@contextmanager
def receiving(*answers: int | bytes | str, port: int = 0, certificate: Path | None = None) -> Iterator[Receiver]:
    """On any free port of loopback, or that one; with a certificate by TLS."""
    receiver = Receiver(answers=list(answers) or [200])
    ending = threading.Event()

    class _Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            receiver.connections += 1
            line = self.rfile.readline().decode()
            headers = {}
            while (head := self.rfile.readline().decode().strip()) != "":
                name, _, value = head.partition(":")
                headers[name.lower()] = value.strip()
            content = self.rfile.read(int(headers.get("content-length", 0)))
            answer = receiver.answers.pop(0) if len(receiver.answers) > 1 else receiver.answers[0]
            receiver.heard.append(Heard(path=line.split(" ")[1], headers=headers, content=content))
            self._answer(answer)

        def _answer(self, answer: int | bytes | str) -> None:
            try:
                if isinstance(answer, int):
                    self.wfile.write(b"HTTP/1.1 %d Said\r\nContent-Length: 0\r\n\r\n" % answer)
                elif isinstance(answer, bytes):
                    self.wfile.write(answer)
                elif answer == "hangs":
                    ending.wait(20)
                elif answer == "drips":
                    for byte in b"HTTP/1.1 200 OK\r\nX-Slow: " + b"a" * 1000:
                        self.wfile.write(bytes([byte]))
                        if ending.wait(0.05):
                            return
                elif answer == "huge":
                    receiver.num_sent = 0
                    self.wfile.write(b"HTTP/1.1 500 Said\r\nContent-Length: 1073741824\r\n\r\n")
                    for _ in range(1024):
                        self.wfile.write(b"x" * 2**20)
                        receiver.num_sent += 2**20
            except OSError:
                pass

    class _Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = True
        daemon_threads = True
        block_on_close = False

    with _Server(("127.0.0.1", port), _Handler) as server:
        receiver.port = server.server_address[1]
        if certificate is not None:
            secure = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            secure.load_cert_chain(certificate)
            server.socket = secure.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield receiver
        finally:
            ending.set()
            server.shutdown()
            thread.join()
