"""The files of deploy/ name only what exists, and agree with the settings' defaults."""

import configparser
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from daifuku.cli.main import Settings as CommandLine
from daifuku.cli.main import build_app
from daifuku.server.settings import PREFIX, Settings, read_settings

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
NGINX = (DEPLOY / "nginx.conf").read_text()
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["daifuku"]
WITH_GPU = yaml.safe_load((DEPLOY / "compose.cuda.yaml").read_text())["services"]["daifuku"]
DEFAULTS = Settings()


@pytest.fixture
def unit() -> configparser.SectionProxy:
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[assignment]
    parser.read(DEPLOY / "daifuku.service")
    return parser["Service"]


def instructions(name: str) -> list[str]:
    """The arguments of a Dockerfile's instructions of one kind."""
    joined = DOCKERFILE.replace("\\\n", " ")
    return re.findall(rf"^{name} (.*)$", joined, re.MULTILINE)


def accepts(arguments: list[str]) -> None:
    """Raises where `daifuku` would not understand its arguments."""
    command: Any = typer.main.get_command(build_app(CommandLine()))
    context = command.make_context("daifuku", list(arguments), resilient_parsing=False)
    sub = command.get_command(context, arguments[0])
    sub.make_context(arguments[0], list(arguments[1:]), parent=context)


def test_what_the_image_copies_is_there_and_is_not_left_out() -> None:
    kept = [line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] == "!"]
    copied = [name for line in instructions("COPY") if "--from" not in line for name in line.split()[:-1]]
    assert copied and set(copied) <= set(kept)
    assert all((ROOT / name).exists() for name in copied)


def test_the_image_installs_the_versions_of_the_locks() -> None:
    assert "torch==" in (ROOT / "requirements/base.lock").read_text()
    (asked,) = [line for line in instructions("RUN") if "torch==" in line]
    assert "grep '^torch==' requirements/base.lock" in asked and "--requirement requirements/base.lock" in asked
    (own,) = [line for line in instructions("RUN") if "'.[" in line]
    assert "--constraint requirements/test.lock" in own


def test_what_the_image_runs_is_a_command() -> None:
    (entry,), (command,) = instructions("ENTRYPOINT"), instructions("CMD")
    assert json.loads(entry) == ["daifuku"]
    accepts(json.loads(command))


def test_the_unit_runs_a_command_with_flags_that_it_has(unit: configparser.SectionProxy) -> None:
    program, *arguments = shlex.split(unit["ExecStart"])
    assert Path(program).name == "daifuku"
    accepts(arguments)
    with pytest.raises(Exception, match="No such option"):
        accepts([*arguments, "--no-such-flag"])


def test_the_image_and_the_compose_file_set_settings_that_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    image = dict(pair.split("=", 1) for line in instructions("ENV") for pair in shlex.split(line))
    ours = {name: value for name, value in (image | COMPOSE["environment"]).items() if name.startswith(PREFIX)}
    for name, value in ours.items():
        monkeypatch.setenv(name, re.sub(r"\$\{\w+:-(.*)\}", r"\1", value))
    found = read_settings(None, {})
    assert (found.host, found.port, found.model) == ("0.0.0.0", DEFAULTS.port, None)
    assert found.data == Path(instructions("VOLUME")[0])


def test_every_supervisor_waits_longer_than_the_server_drains(unit: configparser.SectionProxy) -> None:
    for wait in (COMPOSE["stop_grace_period"].removesuffix("s"), unit["TimeoutStopSec"]):
        assert float(wait) > DEFAULTS.drain_s
    assert unit["KillMode"] == "mixed" and instructions("STOPSIGNAL") == ["SIGTERM"]


def test_the_ports_and_limits_are_those_of_the_server() -> None:
    assert instructions("EXPOSE") == [str(DEFAULTS.port)]
    assert f"http://127.0.0.1:{DEFAULTS.port}/livez" in " ".join(instructions("HEALTHCHECK"))
    assert COMPOSE["ports"] == [f"127.0.0.1:{DEFAULTS.port}:{DEFAULTS.port}"]
    assert f"proxy_pass http://127.0.0.1:{DEFAULTS.port};" in NGINX
    assert "client_max_body_size 1m;" in NGINX and DEFAULTS.max_body_bytes == 2**20
    assert f"client_header_timeout {DEFAULTS.header_s:g}s;" in NGINX
    assert f"client_body_timeout {DEFAULTS.body_s:g}s;" in NGINX


def test_the_gpu_file_changes_the_service_that_there_is_and_an_argument_that_the_image_takes() -> None:
    assert set(WITH_GPU["build"]["args"]) <= {line.partition("=")[0] for line in instructions("ARG")}
    assert WITH_GPU["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]
