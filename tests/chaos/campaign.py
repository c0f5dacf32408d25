"""A campaign: jobs are offered while server and worker are killed at random, and then everything is counted."""

import hashlib
import json
import random
import sqlite3
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import httpx

from daifuku import GenerateRequest, load
from daifuku.events import Frames
from daifuku.server.folder import DataFolder
from tests.chaos.live import Live

COLOURS = ("red", "green", "blue", "yellow", "white")


@dataclass(kw_only=True)
class Findings:
    """What is wrong, by job or file: all empty where the promise was kept."""

    lost: list[str] = field(default_factory=list)
    duplicated: list[str] = field(default_factory=list)
    swapped: list[str] = field(default_factory=list)
    corrupt: list[str] = field(default_factory=list)
    revived: list[str] = field(default_factory=list)
    """Jobs that were cancelled or deleted, and have something to show all the same."""
    left_behind: list[str] = field(default_factory=list)
    worn_out: list[str] = field(default_factory=list)
    """Jobs that were hit by three kills of their worker, and so failed as promised: no fault."""

    def any(self) -> bool:
        """Whether something is."""
        return any(found for kind, found in vars(self).items() if kind != "worn_out")


def bodies(number: int, steps: int, side: int = 64) -> list[dict[str, Any]]:
    """Requests of which no two make the same frames; `side` is that of their pictures, in pixels."""
    return [
        {
            "prompt": f"a small {COLOURS[i % len(COLOURS)]} ball bouncing on a gray background",
            "seed": i,
            "width": side,
            "height": side,
            "num_frames": 7,
            "num_inference_steps": steps,
        }
        for i in range(number)
    ]


def oracle(requests: Iterable[Mapping[str, Any]]) -> list[str]:
    """The hash of the frames that each request makes where nothing disturbs it."""
    pipe = load()
    hashes = []
    for body in requests:
        hashed = hashlib.sha256()
        for event in pipe.run(GenerateRequest.from_dict(body)):
            if isinstance(event, Frames):
                hashed.update(event.frames.tobytes())
        hashes.append(hashed.hexdigest())
    return hashes


def offer(live: Live, requests: list[dict[str, Any]], accepted: dict[str, int]) -> None:
    """Every request until it is answered 202, with a key of its own. Fills `accepted`: number of the request by id."""
    for i, body in enumerate(requests):
        while True:
            try:
                answer = live.submit(body, f"campaign-{i}")
            except (httpx.HTTPError, RuntimeError):
                time.sleep(0.05)
                continue
            if answer.status_code == 202:
                accepted[answer.json()["id"]] = i
                break
            assert answer.status_code in (429, 503), answer.text
            time.sleep(0.2)


def run(
    data: Path, *, num_jobs: int, num_kills: int, log: Path, steps: int = 40, seed: int = 0, queue: int = 20
) -> dict[str, Any]:
    """The campaign, and what it found. Half of the kills hit the server, half the worker.

    They are spread over all jobs: each comes at a random moment after a certain number of jobs was accepted, and so
    nearly as many made. `log` gets what the servers write, one after the other.
    """
    chance = random.Random(seed)
    requests = bodies(num_jobs, steps, side=32)
    expected = oracle(requests)
    started, kills = time.monotonic(), {"server": 0, "worker": 0}
    settings = {"checkpoint_s": "0", "preview_every": "0", "max_queue": str(queue)}
    with Live(data, settings=settings, log=log) as live:
        accepted: dict[str, int] = {}
        client = threading.Thread(target=offer, args=(live, requests, accepted))
        client.start()
        for i, at in enumerate(sorted(chance.sample(range(num_jobs), num_kills))):
            live.wait_ready()
            while len(accepted) <= at and client.is_alive():
                time.sleep(0.01)
            time.sleep(chance.uniform(0.0, 0.5))
            if i % 2 and live.kill_worker():
                kills["worker"] += 1
            else:
                live.kill()
                live.start()
                kills["server"] += 1
        client.join()
        for job_id in accepted:
            live.wait(job_id)
        code = live.terminate()
    findings = check(data, {job_id: expected[i] for job_id, i in accepted.items()})
    seconds = round(time.monotonic() - started, 1)
    lost = [one.partition(":")[0] for one in (*findings.lost, *findings.worn_out)]
    stories = [line for line in log.read_text().splitlines() if any(job_id in line for job_id in lost)]
    report = {"jobs": len(accepted), "kills": kills, "exit_code": code, "seconds": seconds}
    return {**report, "findings": vars(findings), "stories": stories}


def check(data: Path, expected: Mapping[str, str | None]) -> Findings:
    """Reads only the database and the disk.

    `expected` is the hash of the frames of every accepted job, and None for those that were cancelled or deleted.
    """
    found = Findings()
    folder = DataFolder(data)
    with closing(sqlite3.connect(folder.database)) as db:
        db.row_factory = sqlite3.Row
        rows = {row["id"]: row for row in db.execute("SELECT * FROM jobs")}
        if db.execute("PRAGMA integrity_check").fetchone()[0] != "ok":
            found.corrupt.append("jobs.sqlite")
    found.duplicated += [job_id for job_id in rows if job_id not in expected]
    for job_id, frames_sha256 in expected.items():
        row = rows.get(job_id)
        if frames_sha256 is None:
            gone = row is None or row["state"] == "cancelled" or row["deleted_at"] is not None
            if not gone or (data / "videos" / job_id).exists():
                found.revived.append(job_id)
            continue
        if row is None or row["state"] != "completed":
            worn_out = row is not None and (row["error_code"], row["deaths"]) == ("worker_crashed", 3)
            why = "no row" if row is None else f"{row['state']} {row['error_code']}"
            (found.worn_out if worn_out else found.lost).append(f"{job_id}: {why}")
            continue
        result = json.loads(row["result"])
        if result["frames_sha256"] != frames_sha256:
            found.swapped.append(job_id)
        for variant, about in result["files"].items():
            path = folder.published(job_id, variant)
            if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != about["sha256"]:
                found.corrupt.append(f"{job_id}/{variant}")
        if not any(job_id in one for one in found.corrupt):
            with av.open(folder.published(job_id, "video")) as clip:
                if sum(1 for _ in clip.decode(video=0)) != json.loads(row["request"])["num_frames"]:
                    found.corrupt.append(job_id)
    found.duplicated += [path.name for path in (data / "videos").iterdir() if path.name not in expected]
    for name in ("temporary", "checkpoints"):
        found.left_behind += [f"{name}/{path.name}" for path in (data / name).iterdir()]
    return found
