"""Captions that are remembered from one run to the next."""

import os
from pathlib import Path

import pytest
import torch

from daifuku.runtime import captions
from daifuku.runtime.captions import CaptionMemory, EncodedPrompt, encode_prompts
from daifuku.sample.guidance import Caption


def encoded(length: int = 3, cut_text: str = "") -> EncodedPrompt:
    features = torch.randn(1, length, 4, generator=torch.Generator().manual_seed(length))
    caption = Caption(features, torch.ones(1, length, dtype=torch.bool))
    return EncodedPrompt(caption=caption, num_tokens=length, max_tokens=12, cut_text=cut_text)


def never() -> None:
    raise AssertionError("no text encoder is needed")


def test_a_caption_comes_back_bit_for_bit_and_its_prompt_is_not_written_down(tmp_path: Path) -> None:
    memory, put = CaptionMemory(tmp_path, "model"), encoded()
    memory.put("a secret prompt", put)
    found = CaptionMemory(tmp_path, "model").get("a secret prompt")
    assert found is not None and (found.num_tokens, found.max_tokens, found.cut_text) == (3, 12, "")
    assert all(map(torch.equal, found.caption, put.caption))
    (path,) = tmp_path.iterdir()
    assert b"secret" not in path.read_bytes() and "secret" not in path.name


def test_another_prompt_or_model_and_a_damaged_file_are_not_known(tmp_path: Path) -> None:
    CaptionMemory(tmp_path, "model").put("ball", encoded())
    assert CaptionMemory(tmp_path, "model").get("cube") is None
    assert CaptionMemory(tmp_path, "other").get("ball") is None
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    assert CaptionMemory(tmp_path, "model").get("ball") is None


def test_a_prompt_that_was_cut_is_not_remembered_so_that_its_warning_comes_again(tmp_path: Path) -> None:
    memory = CaptionMemory(tmp_path, "model")
    memory.put("long", encoded(cut_text="tail"))
    assert memory.get("long") is None


def test_the_caption_that_was_not_asked_for_the_longest_gives_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(captions, "MOST_FILES", 2)
    memory = CaptionMemory(tmp_path, "model")
    memory.put("first", encoded())
    memory.put("second", encoded())
    for path in tmp_path.iterdir():
        os.utime(path, (0, 0))
    assert memory.get("first") is not None
    memory.put("third", encoded())
    assert [memory.get(prompt) is not None for prompt in ("first", "second", "third")] == [True, False, True]


def test_the_text_encoder_is_not_borrowed_where_all_is_known(tmp_path: Path) -> None:
    memory = CaptionMemory(tmp_path, "model")
    for length, prompt in ((3, "ball"), (1, "")):
        memory.put(prompt, encoded(length))
    found = encode_prompts(["ball", ""], memory, never)  # pyright: ignore[reportArgumentType]
    assert [each.num_tokens for each in found] == [3, 1]


def test_a_folder_that_cannot_be_written_is_no_trouble(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    memory = CaptionMemory(tmp_path / "file" / "folder", "model")
    memory.put("ball", encoded())
    assert memory.get("ball") is None
