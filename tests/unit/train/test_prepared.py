"""Prepared data read back, and damage noticed."""

import json
from pathlib import Path

import pytest
import torch

from daifuku.errors import InvalidRequest, TrainingError
from daifuku.model.vae.encoder import Posterior
from daifuku.train.prepared import (
    MANIFEST,
    Manifest,
    Sample,
    Shard,
    ShardReader,
    check_shard,
    read_manifest,
    write_manifest,
    write_shard,
)


def sample(number: int, *num_tokens: int) -> Sample:
    captions = tuple(f"caption {number}.{i}" for i in range(len(num_tokens)))
    return Sample(
        id=f"{number}", source=f"{number}.mp4", start_s=0.5, num_frames=7, sha256="0", captions=captions,
        num_tokens=num_tokens,
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two samples, with two captions and one; every number tells where it belongs."""
    posteriors = [
        Posterior(mean=torch.full((1, 12, 2, 4, 6), float(i)), logvar=torch.full((1, 12, 2, 4, 6), -float(i)))
        for i in range(2)
    ]
    text = torch.arange(9.0)[:, None].expand(9, 5)
    shard = write_shard(tmp_path, "shards/0.safetensors", [sample(0, 2, 3), sample(1, 4)], posteriors, text, {})
    skipped = ({"source": "bad.mp4", "reason": "it is empty"},)
    write_manifest(tmp_path, Manifest(fps=20, model={"vae_sha256": "1"}, shards=(shard,), skipped=skipped))
    return tmp_path


def test_what_is_written_is_read(folder: Path) -> None:
    manifest = read_manifest(folder)
    assert manifest.num_samples == 2 and manifest.fps == 20 and manifest.skipped[0]["source"] == "bad.mp4"
    [shard] = manifest.shards
    assert shard.bucket == (2, 4, 6) and shard.samples[1] == sample(1, 4)
    check_shard(folder, shard)
    reader = ShardReader(folder, shard)
    assert reader.posterior(1).mean.shape == (1, 12, 2, 4, 6) and reader.posterior(1).logvar.unique().tolist() == [-1]
    assert [reader.text(0, 0)[:, 0].tolist(), reader.text(0, 1)[:, 0].tolist(), reader.text(1, 0)[:, 0].tolist()] == [
        [0, 1], [2, 3, 4], [5, 6, 7, 8],
    ]  # fmt: skip


def test_the_format_is_as_it_was_agreed(folder: Path) -> None:
    content = json.loads((folder / MANIFEST).read_text())
    assert list(content) == ["format", "fps", "model", "shards", "skipped"] and content["format"] == 1
    assert set(content["shards"][0]) == {"file", "sha256", "bucket", "samples"}
    assert set(content["shards"][0]["samples"][0]) == {
        "id", "source", "start_s", "num_frames", "sha256", "captions", "num_tokens",
    }  # fmt: skip


def test_a_single_bit_that_changed_is_noticed(folder: Path) -> None:
    [shard] = read_manifest(folder).shards
    path = folder / shard.file
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(TrainingError, match="SHA-256"):
        check_shard(folder, shard)
    path.unlink()
    with pytest.raises(TrainingError, match="missing"):
        check_shard(folder, shard)


@pytest.mark.parametrize("num_bytes", [0, 7, 100, 1000])
def test_a_shard_that_is_cut_short_is_named(folder: Path, num_bytes: int) -> None:
    [shard] = read_manifest(folder).shards
    path = folder / shard.file
    path.write_bytes(path.read_bytes()[:num_bytes])
    with pytest.raises(TrainingError, match="damaged"):
        ShardReader(folder, shard)


def test_a_shard_of_other_samples_is_refused(folder: Path) -> None:
    [shard] = read_manifest(folder).shards
    other = Shard(file=shard.file, sha256=shard.sha256, bucket=shard.bucket, samples=shard.samples[:1])
    with pytest.raises(TrainingError, match="its tensors are"):
        ShardReader(folder, other)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.pop("shards"),
        lambda c: c.update(format=2),
        lambda c: c.update(shards=3),
        lambda c: c["shards"][0].update(file="../../etc/passwd"),
        lambda c: c["shards"][0].update(file=3),
        lambda c: c["shards"][0].update(bucket=[1, 2]),
        lambda c: c["shards"][0]["samples"][0].pop("id"),
        lambda c: c["shards"][0]["samples"][0].update(num_tokens=[1]),
    ],
)
def test_a_manifest_that_makes_no_sense_is_named(folder: Path, change) -> None:
    content = json.loads((folder / MANIFEST).read_text())
    change(content)
    (folder / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(TrainingError, match=r"manifest\.json is damaged"):
        read_manifest(folder)


def test_without_a_manifest_the_way_to_one_is_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="daifuku prepare"):
        read_manifest(tmp_path)
    (tmp_path / MANIFEST).write_text("{")
    with pytest.raises(TrainingError, match="damaged"):
        read_manifest(tmp_path)
