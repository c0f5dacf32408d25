"""daifuku download: what it prints, and how it ends."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from daifuku.errors import ModelNotFound
from daifuku.weights.download import Download, Item
from daifuku.weights.transfer import Report


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A hub that has a model folder and a file beside it; what it was asked for."""
    seen: dict[str, Any] = {}

    def _item(name: str) -> Item:
        def _get(report: Report) -> Path:
            if "gone" in seen.get("model", ""):
                raise ModelNotFound("it is gone")
            report(3)
            return tmp_path / name

        return Item(name=f"a/b/{name}", num_bytes=3, here_bytes=0, get=_get)

    def _plan(model: str, *, parts: Sequence[str], folder: Path | None, **rest: Any) -> Download:
        seen.update(model=model, parts=list(parts), folder=folder, **rest)
        names = ("model/model_index.json", "model/vae/a.safetensors", "other/dit.safetensors", "other/config.json")
        return Download(items=tuple(map(_item, names)), target=tmp_path, num_repos=2)

    monkeypatch.setattr("daifuku.weights.download.plan_download", _plan)
    return seen


def test_it_prints_what_to_give_to_model(daifuku: Callable[..., Any], asked: dict[str, Any], tmp_path: Path):
    run = daifuku("download", "mochi", "--variant", "fp8", "--only", "dit", "--only", "vae")
    assert run.code == 0 and run.lines == [str(tmp_path / "model"), str(tmp_path / "other/dit.safetensors")]
    assert "4 files, 0.00 GB to download" in run.err
    assert asked == {
        "model": "mochi", "variant": "fp8", "parts": ["dit", "vae"], "folder": None, "revision": None,
    }  # fmt: skip


def test_a_folder_is_what_model_takes_then(daifuku: Callable[..., Any], asked: dict[str, Any]):
    assert daifuku("download", "mochi", "--folder", "models").lines == ["models"]
    assert asked["folder"] == Path("models")


def test_files_of_several_repositories_are_better_off_in_a_folder(daifuku: Callable[..., Any], asked: dict[str, Any]):
    assert "with --folder DIR they become one model" in daifuku("download", "mochi", "--variant", "nf4").err


def test_as_json_it_prints_every_file(daifuku: Callable[..., Any], asked: dict[str, Any], tmp_path: Path):
    run = daifuku("download", "a/b", "--revision", "v1", "--json")
    assert run.json["downloaded_bytes"] == 12 and asked["revision"] == "v1"
    assert run.json["files"][0] == {
        "file": "a/b/model/model_index.json", "path": str(tmp_path / "model/model_index.json"), "bytes": 3,
    }  # fmt: skip


def test_a_file_that_does_not_come_is_a_wrong_request(daifuku: Callable[..., Any], asked: dict[str, Any]):
    run = daifuku("download", "a/gone")
    assert run.code == 2 and "error: it is gone" in run.err and run.out == ""


def test_an_unknown_part_is_refused(daifuku: Callable[..., Any]):
    run = daifuku("download", "mochi", "--only", "lora")
    assert run.code == 2 and "a model has no part 'lora'" in run.err
