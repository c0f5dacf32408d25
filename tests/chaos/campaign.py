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
    left_behind: list[str] = field(default_factory=list)
    worn_out: list[str] = field(default_factory=list)
    """Jobs that were hit by three kills of their worker, and so failed as promised: no fault."""

    def any(self) -> bool:
        """Whether something is."""
        return any(found for kind, found in vars(self).items() if kind != "worn_out")


def bodies(number: int, steps: int) -> list[dict[str, Any]]:
    """Requests of which no two make the same frames."""
    return [
        {
            "prompt": f"a small {COLOURS[i % len(COLOURS)]} ball bouncing on a gray background",
            "seed": i,
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


def offer(live: Live, requests: list[dict[str, Any]], alive: threading.Event) -> dict[str, str]:
    """Every request until it is answered 202, with a key of its own. Returns key by accepted id."""
    accepted: dict[str, str] = {}
    for i, body in enumerate(requests):
        key = f"campaign-{i}"
        while True:
            alive.wait()
            try:
                answer = live.submit(body, key)
            except httpx.HTTPError:
                time.sleep(0.05)
                continue
            if answer.status_code == 202:
                accepted[answer.json()["id"]] = key
                break
            assert answer.status_code in (429, 503), answer.text
            time.sleep(0.1)
    return accepted


def run(data: Path, *, num_jobs: int, num_kills: int, steps: int = 40, seed: int = 0) -> dict[str, Any]:
    """The campaign, and what it found. Half of the kills hit the server, half the worker."""
    chance = random.Random(seed)
    requests = bodies(num_jobs, steps)
    expected = oracle(requests)
    alive = threading.Event()
    started, kills = time.monotonic(), {"server": 0, "worker": 0}
    with Live(data, settings={"checkpoint_s": "0", "max_queue": "50"}) as live:
        alive.set()
        accepted: dict[str, str] = {}
        client = threading.Thread(target=lambda: accepted.update(offer(live, requests, alive)))
        client.start()
        live.wait_ready()
        for i in range(num_kills):
            time.sleep(chance.uniform(0.1, 1.5))
            if i % 2 and live.kill_worker():
                kills["worker"] += 1
            else:
                alive.clear()
                live.kill()
                live.start()
                alive.set()
                kills["server"] += 1
            live.wait_ready()
        client.join()
        for job_id in accepted:
            live.wait(job_id)
        code = live.terminate()
    keys = [f"campaign-{i}" for i in range(num_jobs)]
    findings = check(data, {job_id: expected[keys.index(key)] for job_id, key in accepted.items()})
    seconds = round(time.monotonic() - started, 1)
    return {"jobs": len(accepted), "kills": kills, "exit_code": code, "seconds": seconds, "findings": vars(findings)}


def check(data: Path, expected: Mapping[str, str]) -> Findings:
    """Reads only the database and the disk; `expected` is the hash of the frames of every accepted job."""
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
