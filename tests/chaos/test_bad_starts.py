"""What cannot work is said in one line before anything is promised, with an exit code that is not 0."""

import os
import shutil
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

Start = tuple[list[str], dict[str, str], str]
"""Flags, environment, and what the line has to name."""


def _data(folder: Path) -> Path:
    (folder / "data").mkdir()
    return folder / "data"


def _file_for_a_folder(folder: Path) -> Start:
    (folder / "data").touch()
    return [], {}, "data"


def _no_database(folder: Path) -> Start:
    (_data(folder) / "jobs.sqlite").write_bytes(b"no database" * 1000)
    return [], {}, "jobs.sqlite"


def _database_of_another_program(folder: Path) -> Start:
    connection = sqlite3.connect(_data(folder) / "jobs.sqlite")
    connection.execute("CREATE TABLE jobs (a)")
    connection.close()
    return [], {}, "jobs.sqlite"


def _newer_database(folder: Path) -> Start:
    connection = sqlite3.connect(_data(folder) / "jobs.sqlite")
    connection.execute("PRAGMA user_version = 999")
    connection.close()
    return [], {}, "schema 999"


def _damaged_database(folder: Path) -> Start:
    path = _data(folder) / "jobs.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE a (b)")
    connection.executemany("INSERT INTO a VALUES (?)", [(b"x" * 900,)] * 50)
    connection.commit()
    connection.close()
    path.write_bytes(path.read_bytes()[:6000])
    return [], {}, "jobs.sqlite"


def _truncated_model(folder: Path) -> Start:
    model = folder / "model"
    shutil.copytree(Path(f"{files('daifuku')}") / "assets" / "tiny", model)
    (weights,) = (model / "transformer").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:5000])
    return ["--model", str(model)], {}, weights.name


def _text(name: str, content: str, flag: str) -> Callable[[Path], Start]:
    def _start(folder: Path) -> Start:
        (folder / name).write_text(content)
        return [flag, str(folder / name)], {}, name

    return _start


def _flags(*flags: str, names: str) -> Callable[[Path], Start]:
    return lambda folder: ([*flags], {}, names)


def _variable(name: str, value: str, names: str | None = None) -> Callable[[Path], Start]:
    return lambda folder: ([], {f"DAIFUKU_{name.upper()}": value}, names or name)


STARTS: dict[str, Callable[[Path], Start]] = {
    "a file where the folder should be": _file_for_a_folder,
    "no database": _no_database,
    "a database of another program": _database_of_another_program,
    "a database of a newer version": _newer_database,
    "a database that was cut": _damaged_database,
    "a model that was cut": _truncated_model,
    "no such model": _flags("--model", "./nowhere", names="nowhere"),
    "no such keys": _flags("--keys", "nowhere.toml", names="nowhere.toml"),
    "no such LoRAs": _flags("--loras", "nowhere", names="nowhere"),
    "no such configuration": _flags("--config", "nowhere.toml", names="nowhere.toml"),
    "another machine's address": _flags("--host", "203.0.113.1", "--keys", "nowhere", names="nowhere"),
    "no address": _flags("--host", "not a host", names="host"),
    "open without keys": _flags("--host", "0.0.0.0", names="keys"),
    "a port that is none": _flags("--port", "70000", names="port"),
    "no TOML": _text("a.toml", "port = = 1", "--config"),
    "an unknown setting": _text("a.toml", "prot = 1", "--config"),
    "a setting of another type": _text("a.toml", 'config = "x"', "--config"),
    "keys without hashes": _text("keys.toml", '[[key]]\nname = "a"\nsha256 = "secret"', "--keys"),
    "no devices": _variable("devices", "cuda:0"),
    "a device that is not here": _variable("devices", '["cuda:7"]', "cuda:7"),
    "memory that is none": _variable("device_memory", "much", "memory"),
    "an unknown variable": _variable("prot", "1"),
    **{
        f"{name}={value}": _variable(name, value)
        for name, value in {
            "port": "-1",
            "max_queue": "0",
            "max_work": "nan",
            "lease_s": "0",
            "keep_bytes": "-1",
            "max_batch": "1.5",
            "worker_bytes": "1",
            "log_level": "loud",
            "checkpoint_s": "-1",
            "max_body_bytes": "",
            "drain_s": "soon",
            "max_connections": "many",
            "preview_every": "-4",
            "sweep_s": "inf?",
        }.items()
    },
}


@pytest.mark.parametrize("name", STARTS)
def test_a_start_that_cannot_work_ends_in_one_line(name: str, tmp_path: Path) -> None:
    flags, environment, named = STARTS[name](tmp_path)
    data = [] if "--data" in flags else ["--data", str(tmp_path / "data")]
    port = [] if "--port" in flags or "DAIFUKU_PORT" in environment else ["--port", "0"]
    ended = subprocess.run(
        [sys.executable, "-m", "daifuku", "serve", *data, *port, *flags],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
    )
    lines = ended.stderr.splitlines()
    said = [line for line in lines if not line.startswith("{")]
    assert ended.returncode in (1, 2) and "Traceback" not in ended.stderr
    assert len(said) == 1 and said[0].startswith("error: ") and named in said[0].lower(), ended.stderr
    # The reason, and not that something went wrong inside.
    assert "inside" not in said[0]


@contextmanager
def _taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as there:
        yield there.getsockname()[1]


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with _taken() as port:
        command = [sys.executable, "-m", "daifuku", "serve", "--port", str(port), "--data", str(tmp_path / "data")]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2 and str(port) in ended.stderr and "Traceback" not in ended.stderr
