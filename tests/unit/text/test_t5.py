"""Tokenizers from a folder, and from the single files that people have."""

import shutil
from pathlib import Path

import pytest
import sentencepiece

from daifuku.errors import CheckpointError, ModelNotFound
from daifuku.runtime.build import BUILT_IN_FOLDER
from daifuku.text.t5 import read_tokenizer

PROMPT = "a small red ball bouncing on gray"


@pytest.fixture
def spiece(tmp_path: Path) -> Path:
    """A vocabulary as the published T5 has it: padding, end mark and unknown word first."""
    (tmp_path / "text").write_text("\n".join(["a small red ball", "a ball bouncing on gray", "red on gray"] * 20))
    sentencepiece.SentencePieceTrainer.Train(
        input=str(tmp_path / "text"), model_prefix=str(tmp_path / "spiece"), vocab_size=22, model_type="unigram",
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    return tmp_path / "spiece.model"


@pytest.mark.parametrize("folder", [False, True])
def test_a_lone_vocabulary_of_sentencepiece_reads_as_sentencepiece_does(spiece: Path, folder: bool):
    exact = sentencepiece.SentencePieceProcessor(model_file=str(spiece)).encode(PROMPT)
    assert read_tokenizer(spiece.parent if folder else spiece).encode(PROMPT) == [*exact, 1]


@pytest.mark.parametrize("folder", [False, True])
def test_a_lone_tokenizer_file_reads_as_its_folder_does(tmp_path: Path, folder: bool):
    path = Path(shutil.copy(BUILT_IN_FOLDER / "tokenizer" / "tokenizer.json", tmp_path))
    exact = read_tokenizer(BUILT_IN_FOLDER / "tokenizer").encode(PROMPT)
    assert read_tokenizer(tmp_path if folder else path).encode(PROMPT) == exact


def test_a_tokenizer_that_is_not_there_or_damaged_is_named(tmp_path: Path):
    with pytest.raises(ModelNotFound, match="does not exist"):
        read_tokenizer(tmp_path / "spiece.model")
    with pytest.raises(ModelNotFound, match=r"needs tokenizer\.json or spiece\.model"):
        read_tokenizer(tmp_path)
    for name in ("tokenizer.json", "spiece.model"):
        (tmp_path / name).write_bytes(b"nothing of the kind")
        with pytest.raises(CheckpointError, match=f"{name} does not load"):
            read_tokenizer(tmp_path / name)
        (tmp_path / name).unlink()
