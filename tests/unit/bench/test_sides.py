"""Both programs are asked the same: on a tiny model, what they answer is the same."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from daifuku.bench import dit, loading, text, vae
from daifuku.bench.case import Build
from daifuku.bench.models import write_model
from daifuku.config import DiTConfig

SHAPE = (2, 4, 6)
TOLERANCE = 2e-4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_model(folder, size="tiny")
    return folder


def result(build: Build, folder: Path) -> np.ndarray:
    action = build(folder)
    assert action.output is not None
    action.run()
    return action.output().double().numpy()


def scale_of(difference: np.ndarray, like: np.ndarray) -> float:
    assert like.std() > 1e-3, "results that vanish show nothing"
    return float(np.abs(difference).max() / np.abs(like).max())


here: Any = {"shape": SHAPE, "dtype": "float32"}


@pytest.mark.parametrize(
    "ours, theirs",
    [
        (partial(dit.ours, **here), partial(dit.diffusers, **here)),
        (partial(dit.ours_guided, **here, num_steps=4), partial(dit.diffusers_guided, **here, num_steps=4)),
        (partial(vae.ours_encode, **here), partial(vae.diffusers_encode, **here)),
        (partial(text.ours, dtype="float32"), partial(text.diffusers, dtype="float32")),
    ],
    ids=["a velocity", "a guided run", "an encoded clip", "an encoded prompt"],
)
def test_both_sides_compute_the_same(folder: Path, ours: Build, theirs: Build):
    one, other = result(ours, folder), result(theirs, folder)
    assert one.shape == other.shape
    assert scale_of(one - other, other) < TOLERANCE


def test_decoders_agree_but_for_the_first_frames(folder: Path):
    long: Any = {"shape": (6, 2, 4), "dtype": "float32"}
    ours, theirs = (
        result(partial(vae.ours_decode, **long), folder),
        result(partial(vae.diffusers_decode, **long), folder),
    )
    assert scale_of((ours - theirs)[:, :, 24:], theirs) < TOLERANCE


@pytest.mark.parametrize(
    "whole, streaming",
    [(vae.ours_decode, vae.ours_decode_streaming), (vae.ours_encode, vae.ours_encode_streaming)],
    ids=["decode", "encode"],
)
def test_streaming_gives_the_whole_clip(folder: Path, whole: Any, streaming: Any):
    difference = result(partial(whole, **here), folder) - result(partial(streaming, **here), folder)
    assert np.abs(difference).max() < 1e-5


@pytest.mark.parametrize(
    "rounded, exact",
    [
        (partial(dit.ours, **here), partial(dit.exact, shape=SHAPE)),
        (partial(vae.ours_decode, **here), partial(vae.exact_decode, shape=SHAPE)),
        (partial(vae.ours_encode, **here), partial(vae.exact_encode, shape=SHAPE)),
        (partial(vae.diffusers_decode, **here), partial(vae.exact_diffusers_decode, shape=SHAPE)),
    ],
    ids=["velocity", "decode", "encode", "their decode"],
)
def test_float64_is_near_and_is_not_float32(folder: Path, rounded: Build, exact: Build):
    with torch.random.fork_rng():
        reference = result(exact, folder)
    assert torch.get_default_dtype() == torch.float32
    assert 0 < scale_of(result(rounded, folder) - reference, reference) < 1e-4
    assert (reference != reference.astype(np.float32)).mean() > 0.9, "some step went through float32"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_reader_reads_the_checkpoint(folder: Path, dtype: str):
    for read in (loading.ours, loading.safetensors, loading.diffusers):
        read(folder, dtype=dtype).run()


def test_the_formula_counts_the_operations_of_the_published_model():
    assert dit.forward_flops(DiTConfig(), (28, 60, 106), num_text=256) == pytest.approx(1667.5e12, rel=1e-4)
