"""Which samples a step sees, and what is read of them."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from daifuku.errors import InvalidRequest, TrainingError
from daifuku.train.dataset import Batches, open_prepared, read_samples
from tests.unit.train.prepared_data import write_prepared

BUCKETS = [((2, 4, 4), 7), ((1, 4, 6), 5)]


def batches(folder: Path, *, seed: int = 0, weight: float = 1.0, size: int = 3) -> Batches:
    write_prepared(folder, BUCKETS)
    return Batches([(open_prepared(folder), weight)], size=size, sizes={}, seed=seed)


def epoch(found: Batches, number: int) -> list[str]:
    steps = range(number * found.per_epoch, (number + 1) * found.per_epoch)
    return [name for step in steps for name in found.ids(step)]


def test_an_epoch_sees_every_sample_once_in_batches_of_one_bucket(tmp_path: Path) -> None:
    found = batches(tmp_path)
    assert found.per_epoch == 3 + 2
    assert all(len({sample.bucket for sample in found[step]}) == 1 for step in range(found.per_epoch))
    for number in range(3):
        assert sorted(epoch(found, number)) == sorted(set(epoch(found, 0)))
        assert len(epoch(found, number)) == 12


def test_epochs_and_seeds_differ_and_repeat_exactly(tmp_path: Path) -> None:
    found, again, other = (batches(tmp_path / str(i), seed=seed) for i, seed in enumerate((0, 0, 1)))
    assert [found.ids(step) for step in range(40)] == [again.ids(step) for step in range(40)]
    assert found.ids(37) == batches(tmp_path / "3").ids(37), "a step needs none of those before it"
    assert epoch(found, 0) != epoch(found, 1)
    assert epoch(found, 0) != epoch(other, 0)


@pytest.mark.parametrize("weight, most", [(2.0, 2), (1.5, 2), (0.5, 1)])
def test_a_weight_says_how_often_an_epoch_sees_a_sample(weight: float, most: int, tmp_path: Path) -> None:
    found = batches(tmp_path, weight=weight)
    counts = [Counter(epoch(found, number)) for number in range(6)]
    assert {sum(count.values()) for count in counts} == {round(7 * weight) + round(5 * weight)}
    assert max(max(count.values()) for count in counts) == most
    assert len(sum(counts, Counter())) == 12, "over several epochs everything is seen"


def test_a_bucket_may_have_a_batch_size_of_its_own(tmp_path: Path) -> None:
    write_prepared(tmp_path, BUCKETS)
    found = Batches([(open_prepared(tmp_path), 1.0)], size=1, sizes={"2x4x4": 4}, seed=0)
    sizes = Counter((found[step][0].bucket, len(found[step])) for step in range(found.per_epoch))
    assert sizes == {((2, 4, 4), 4): 1, ((2, 4, 4), 3): 1, ((1, 4, 6), 1): 5}


def test_a_sample_comes_with_its_own_gaussian_and_the_caption_that_is_asked_for(tmp_path: Path) -> None:
    write_prepared(tmp_path, [((2, 4, 4), 4)], num_captions=3)
    sample = open_prepared(tmp_path).samples[2]
    shard = load_file(tmp_path / "shards" / "000000.safetensors")
    tokens = [
        each["num_tokens"] for each in json.loads((tmp_path / "manifest.json").read_text())["shards"][0]["samples"]
    ]
    start = sum(tokens[0]) + sum(tokens[1]) + tokens[2][0]
    found = read_samples([sample], [1])
    assert torch.equal(found.mean[0], shard["mean"][2])
    assert torch.equal(found.logvar[0], shard["logvar"][2])
    assert torch.equal(found.text[0], shard["text"][start : start + tokens[2][1]])


def test_a_folder_without_data_says_how_to_make_some(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="daifuku prepare"):
        open_prepared(tmp_path / "nothing")


def test_a_shard_that_changed_is_refused_before_the_first_step(tmp_path: Path) -> None:
    write_prepared(tmp_path, BUCKETS)
    shard = tmp_path / "shards" / "000001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-4] + b"oops")
    with pytest.raises(TrainingError, match=r"000001\.safetensors is damaged: its SHA-256"):
        open_prepared(tmp_path)


@pytest.mark.parametrize("content", ["{}", "[]", '{"format": 1, "shards": [{}]}', "no JSON"])
def test_a_manifest_that_is_none_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(TrainingError, match=r"manifest\.json is damaged"):
        open_prepared(tmp_path)


def test_a_folder_of_which_every_video_was_skipped_says_so(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"format": 1, "fps": 30, "model": {}, "shards": [], "skipped": []}')
    with pytest.raises(InvalidRequest, match="every video was skipped"):
        open_prepared(tmp_path)
