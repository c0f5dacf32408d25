"""Checkpoints: whole or not at all, checked before they are used, and none is lost to a crash."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from daifuku.errors import TrainingError
from daifuku.train import checkpoint
from daifuku.train.checkpoint import HOME, MANIFEST, newest_checkpoint, save_checkpoint


def groups(step: int) -> checkpoint.Groups:
    return {"model": {"layer.weight": torch.full((20,), float(step))}, "ema": {"layer.weight": torch.zeros(20)}}


def save(folder: Path, *steps: int, keep: int = 3) -> None:
    for step in steps:
        save_checkpoint(folder, step, groups(step), conditions={"threads": "1"}, keep=keep)


def newest_step(folder: Path) -> int | None:
    found = newest_checkpoint(folder)
    return None if found is None else found.step


def test_the_newest_one_comes_back_as_it_was(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None
    save(tmp_path, 5, 10)
    found = newest_checkpoint(tmp_path)
    assert found is not None and found.step == 10 and found.conditions == {"threads": "1"}
    assert torch.equal(found.groups["model"]["layer.weight"], torch.full((20,), 10.0))
    assert found.groups.keys() == {"model", "ema"}


def test_only_the_last_ones_are_kept(tmp_path: Path) -> None:
    save(tmp_path, 5, 10, 15, 1000, keep=2)
    assert sorted(path.name for path in (tmp_path / HOME).iterdir()) == ["000000015", "000001000"]


@pytest.mark.parametrize("bit", range(0, 800, 40))
def test_one_flipped_bit_is_found_and_the_one_before_it_is_taken(bit: int, tmp_path: Path) -> None:
    save(tmp_path, 5, 10)
    path = tmp_path / HOME / "000000010" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[bit // 8 % len(content)] ^= 1 << bit % 8
    path.write_bytes(content)
    said: list[str] = []
    found = newest_checkpoint(tmp_path, said.append)
    assert found is not None and found.step == 5
    assert len(said) == 1 and "000000010 is damaged" in said[0]


@pytest.mark.parametrize("harm", ["truncated", "no file", "no manifest", "empty manifest", "another step", "not JSON"])
def test_whatever_else_is_wrong_is_found_too(harm: str, tmp_path: Path) -> None:
    save(tmp_path, 5, 10)
    newest = tmp_path / HOME / "000000010"
    file, manifest = newest / "ema.safetensors", newest / MANIFEST
    match harm:
        case "truncated":
            file.write_bytes(file.read_bytes()[:-1])
        case "no file":
            file.unlink()
        case "no manifest":
            manifest.unlink()
        case "empty manifest":
            manifest.write_text("")
        case "another step":
            manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"step": 9}))
        case "not JSON":
            manifest.write_text('["format"]')
    assert newest_step(tmp_path) == 5


def test_damaged_ones_do_not_push_out_the_sound_one(tmp_path: Path) -> None:
    save(tmp_path, 5, 10, 15, keep=3)
    for step in (10, 15):
        (tmp_path / HOME / f"{step:09}" / MANIFEST).unlink()
    assert newest_step(tmp_path) == 5
    save(tmp_path, 6, keep=2)
    assert newest_step(tmp_path) == 6
    assert (tmp_path / HOME / "000000005").exists()


def test_where_all_are_damaged_nothing_starts_anew_unasked(tmp_path: Path) -> None:
    save(tmp_path, 5)
    (tmp_path / HOME / "000000005" / MANIFEST).unlink()
    for _ in range(2):
        with pytest.raises(TrainingError, match=r"every checkpoint in .* is damaged"):
            newest_checkpoint(tmp_path)


class Killed(BaseException):
    """The process ends here."""


CALLS = ("os.fsync", "pathlib.Path.rename", "pathlib.Path.mkdir", "pathlib.Path.write_text", "shutil.rmtree")


@pytest.mark.parametrize("call", CALLS)
def test_a_kill_at_any_call_of_a_save_leaves_a_sound_checkpoint(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first, the second, ... use of the call, until a save goes through."""
    module, _, name = call.rpartition(".")
    owner = {"os": os, "pathlib.Path": Path, "shutil": shutil}[module]
    real = getattr(owner, name)
    kills = 0
    for nth in range(20):
        folder = tmp_path / str(nth)
        save(folder, 5, 10, keep=2)
        left = [nth]

        def once(*args: object, left: list[int] = left, **kwargs: object) -> object:
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            return real(*args, **kwargs)

        with monkeypatch.context() as patched:
            patched.setattr(owner, name, once)
            try:
                save(folder, 15, keep=2)
            except Killed:
                kills += 1
        assert newest_step(folder) in (10, 15)
        save(folder, 15, 20, keep=2)
        assert newest_step(folder) == 20
        assert sorted(path.name for path in (folder / HOME).iterdir()) == ["000000015", "000000020"]
        if left[0] > 0:
            break
    assert kills >= 1, "a kill that never came shows nothing"


def test_a_full_disk_is_told_and_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 5)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(TrainingError, match=r"No space left on device\. The checkpoints before it are whole"):
        save(tmp_path, 10)
    assert newest_step(tmp_path) == 5
    assert [path.name for path in (tmp_path / HOME).iterdir()] == ["000000005"]


def test_a_checkpoint_of_an_older_version_is_read_until_there_is_a_new_one(tmp_path: Path) -> None:
    tensors = {"model/layer.weight": torch.ones(3), "ema/num_updates": torch.tensor(7), "loop/step": torch.tensor(40)}
    save_file(tensors, tmp_path / "checkpoint.safetensors")
    found = newest_checkpoint(tmp_path)
    assert found is not None and found.step == 40 and not found.conditions
    assert found.groups.keys() == {"model", "ema"}
    assert torch.equal(found.groups["model"]["layer.weight"], torch.ones(3))
    save(tmp_path, 50)
    assert newest_step(tmp_path) == 50
