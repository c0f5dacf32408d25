"""python -m tests.chaos.load: how quickly jobs are accepted, refused and looked at while a worker is busy."""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path

import httpx
import psutil

from tests.chaos.live import SHORT, Live


def spread(seconds: list[float]) -> dict[str, float]:
    """Median and slow end, in milliseconds."""
    cuts = statistics.quantiles(seconds, n=100)
    return {"p50_ms": round(1000 * cuts[49], 1), "p99_ms": round(1000 * cuts[98], 1)}


async def accepts(url: str, number: int, per_s: float) -> dict[str, object]:
    """Offers jobs at a steady rate on 16 connections."""
    taken: list[float] = []
    wrong: list[int] = []
    limits = httpx.Limits(max_connections=16)

    async def _one(client: httpx.AsyncClient, at: float) -> None:
        await asyncio.sleep(at)
        started = time.perf_counter()
        answer = await client.post("/v1/videos", json=SHORT)
        taken.append(time.perf_counter() - started)
        if answer.status_code != 202:
            wrong.append(answer.status_code)

    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
        await asyncio.gather(*(_one(client, i / per_s) for i in range(number)))
    return {"accepted": len(taken) - len(wrong), "wrong": wrong[:5], **spread(taken)}


async def overload(url: str, per_connection: int, num_connections: int) -> dict[str, object]:
    """Offers jobs without pause on many connections to a server with a short queue.

    The client writes bytes itself: a comfortable one would be slower than the server.
    """
    body = json.dumps(SHORT).encode()
    head = "POST /v1/videos HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n"
    host, port = url.removeprefix("http://").split(":")
    taken: dict[int, list[float]] = {}

    async def _one() -> None:
        reader, writer = await asyncio.open_connection(host, int(port))
        for _ in range(per_connection):
            started = time.perf_counter()
            writer.write(head.encode() + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(answer.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
            taken.setdefault(int(answer[9:12]), []).append(time.perf_counter() - started)
        writer.close()

    await asyncio.gather(*(_one() for _ in range(num_connections)))
    return {str(status): {"number": len(times), **spread(times)} for status, times in taken.items() if len(times) > 1}


async def follow(live: Live, number: int, num_slow: int) -> dict[str, object]:
    """Opens many event streams of one running job, some of which nobody reads; says what memory they take."""
    process = psutil.Process(live.process.pid)
    before = process.memory_info().rss
    job_id = live.submit(SHORT | {"num_inference_steps": 600}).json()["id"]
    host, port = live.url.removeprefix("http://").split(":")
    writers: list[asyncio.StreamWriter] = []
    readers: list[asyncio.Task[bytes]] = []
    for i in range(number):
        reader, writer = await asyncio.open_connection(host, int(port), limit=2**12)
        writer.write(f"GET /v1/videos/{job_id}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        writers.append(writer)
        if i >= num_slow:
            readers.append(asyncio.create_task(_read_all(reader)))
    await asyncio.sleep(4)
    grown = process.memory_info().rss - before
    done, _ = await asyncio.wait(readers, timeout=120)
    complete = sum(b"event: done" in reader.result() for reader in done)
    for writer in writers:
        writer.close()
    return {"streams": number, "slow": num_slow, "saw_the_end": complete, "grown_mb": round(grown / 1e6, 1)}


async def _read_all(reader: asyncio.StreamReader) -> bytes:
    received = b""
    while b"event: done" not in received and (chunk := await reader.read(65536)):
        received = received[-200:] + chunk
    return received


def main() -> None:
    """Measure, and print what was measured as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--per-s", type=float, default=20.0)
    given = parser.parse_args()
    report: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        with Live(Path(folder, "a"), settings={"max_queue": "100000"}) as live:
            live.wait_ready()
            report["accept"] = asyncio.run(accepts(live.url, given.jobs, given.per_s))
        with Live(Path(folder, "b"), settings={"max_queue": "100"}) as live:
            live.wait_ready()
            report["overload"] = asyncio.run(overload(live.url, 8, 64))
        with Live(Path(folder, "c")) as live:
            live.wait_ready()
            report["follow"] = asyncio.run(follow(live, 200, 20))
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
