from pathlib import Path

import pytest

from daifuku.errors import InvalidRequest
from daifuku.server.settings import Settings, read_settings


def test_nothing_has_to_be_set() -> None:
    assert read_settings(None, {}) == Settings()
    assert Settings().host == "127.0.0.1"


def test_a_flag_goes_before_the_environment_and_that_before_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "serve.toml"
    config.write_text('port = 1\nmax_queue = 1\nkeep_s = 1.0\ndevices = ["cpu"]\n')
    monkeypatch.setenv("DAIFUKU_PORT", "2")
    monkeypatch.setenv("DAIFUKU_MAX_QUEUE", "2")
    monkeypatch.setenv("DAIFUKU_ALLOWED_HOSTS", '["video.local"]')
    found = read_settings(config, {"port": 3, "host": None})
    assert (found.port, found.max_queue, found.keep_s, found.devices) == (3, 2, 1.0, ["cpu"])
    assert found.allowed_hosts == ["video.local"]


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_explained(name: str) -> None:
    assert Settings.model_fields[name].description


@pytest.mark.parametrize("name", ["port", "max_queue", "devices", "keep_s", "worker_bytes", "log_level"])
def test_a_variable_that_makes_no_sense_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"DAIFUKU_{name.upper()}", "[[")
    with pytest.raises(InvalidRequest, match=name):
        read_settings(None, {})


@pytest.mark.parametrize(
    "text, said",
    [
        ("prot = 1", "prot in"),
        ("port = 'x'", "port"),
        ("port = 99999", "port"),
        ("=", "no TOML"),
        ("max_queue = 0", "max_queue"),
    ],
)
def test_a_wrong_file_is_refused_naming_what_is_wrong(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "serve.toml").write_text(text)
    with pytest.raises(InvalidRequest, match=said):
        read_settings(tmp_path / "serve.toml", {})


def test_a_variable_that_is_no_setting_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAIFUKU_PROT", "1")
    with pytest.raises(InvalidRequest, match="DAIFUKU_PROT is no setting"):
        read_settings(None, {})


def test_other_machines_are_let_in_only_with_keys(tmp_path: Path) -> None:
    for host in ("0.0.0.0", "::", "192.168.0.2", "example.org"):
        with pytest.raises(InvalidRequest, match="no API keys"):
            read_settings(None, {"host": host})
        assert read_settings(None, {"host": host, "keys": tmp_path}).is_open


PAGE = (Path(__file__).parents[3] / "docs" / "serving.md").read_text()


@pytest.mark.parametrize("name", Settings.model_fields)
def test_the_page_has_every_setting_with_its_default(name: str) -> None:
    about = Settings.model_fields[name]
    default = "" if about.default is None else f"`{about.default}`"
    assert f"| `{name}` | {default} | {about.description} |" in PAGE
