"""Finding a model's files: folders, variants, the hub's cache, and what is said when something is not there."""

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from daifuku.errors import CheckpointError, InvalidRequest, ModelNotFound
from daifuku.weights.identity import model_identity
from daifuku.weights.locate import ModelFiles, locate
from daifuku.weights.save import write_model_index

REVISION = "0123456789abcdef0123456789abcdef01234567"
REPO = "genmo/mochi-1-preview"


def write(path: Path, content: str = "{}") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def write_index(path: Path, *shards: str) -> None:
    write(path, json.dumps({"weight_map": {f"tensor{i}": shard for i, shard in enumerate(shards)}}))


def diffusers_folder(root: Path) -> Path:
    """The files of the published model: only some parts have a bf16 variant."""
    write_model_index(root, zero_empty=False)
    write(root / "generation_config.json", '{"num_inference_steps": 8}')
    for name in ("00001-of-00002", "00002-of-00002"):
        write(root / "transformer" / f"diffusion_pytorch_model.bf16-{name}.safetensors")
        write(root / "text_encoder" / f"model-{name}.safetensors")
    shards = [f"diffusion_pytorch_model.bf16-0000{i}-of-00002.safetensors" for i in (1, 2)]
    write_index(root / "transformer" / "diffusion_pytorch_model.safetensors.index.bf16.json", *shards)
    write_index(
        root / "text_encoder" / "model.safetensors.index.json", *[f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    )
    write(root / "transformer" / "diffusion_pytorch_model.safetensors")
    write(root / "vae" / "diffusion_pytorch_model.safetensors")
    write(root / "vae" / "diffusion_pytorch_model.bf16.safetensors")
    for folder in ("text_encoder", "transformer", "vae"):
        write(root / folder / "config.json")
    write(root / "tokenizer" / "tokenizer.json")
    return root


def names(files: ModelFiles) -> dict[str, list[str]]:
    parts = {"transformer": files.transformer, "vae": files.vae, "text": files.text_weights}
    return {part: [path.name for path in paths] for part, paths in parts.items()}


@pytest.fixture
def offline_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, and no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


def cached_snapshot(cache: Path, repo: str) -> Path:
    folder = cache / f"models--{repo.replace('/', '--')}"
    write(folder / "refs" / "main", REVISION)
    (folder / "snapshots" / REVISION).mkdir(parents=True)
    return folder / "snapshots" / REVISION


def test_a_diffusers_folder_gives_every_part(tmp_path: Path):
    files = locate(diffusers_folder(tmp_path))
    assert files.layout == "diffusers"
    assert names(files) == {
        "transformer": ["diffusion_pytorch_model.safetensors"],
        "vae": ["diffusion_pytorch_model.safetensors"],
        "text": ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
    }
    assert (files.text_encoder, files.tokenizer) == (tmp_path / "text_encoder", tmp_path / "tokenizer")
    assert files.defaults == {"num_inference_steps": 8}


def test_a_variant_is_taken_where_there_is_one_and_plain_files_elsewhere(tmp_path: Path):
    files = locate(diffusers_folder(tmp_path), variant="bf16")
    assert names(files) == {
        "transformer": [f"diffusion_pytorch_model.bf16-0000{i}-of-00002.safetensors" for i in (1, 2)],
        "vae": ["diffusion_pytorch_model.bf16.safetensors"],
        "text": ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
    }
    assert files.text_variant is None
    assert len(locate(tmp_path, variant="bf16", parts=["text"]).text_weights) == 2


@pytest.mark.parametrize(
    "index",
    [
        "diffusion_pytorch_model.safetensors.index.bf16.json",
        "diffusion_pytorch_model.bf16.safetensors.index.json",
        "diffusion_pytorch_model.safetensors.bf16.index.json",
    ],
)
def test_every_spelling_of_a_variants_index_is_read(tmp_path: Path, index: str):
    diffusers_folder(tmp_path)
    folder = tmp_path / "transformer"
    (folder / "diffusion_pytorch_model.safetensors.index.bf16.json").rename(folder / index)
    assert len(locate(tmp_path, variant="bf16").transformer) == 2


def test_a_variant_that_nobody_published_names_those_that_are_there(tmp_path: Path):
    with pytest.raises(ModelNotFound, match=r"no weights of variant 'fp16'; the variant that is there: bf16"):
        locate(diffusers_folder(tmp_path), variant="fp16")


def test_missing_plain_weights_name_the_variant_that_would_work(tmp_path: Path):
    (diffusers_folder(tmp_path) / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ModelNotFound, match=r"transformer; the variant that is there: bf16"):
        locate(tmp_path)


def test_missing_shards_are_named(tmp_path: Path):
    lost = "diffusion_pytorch_model.bf16-00002-of-00002.safetensors"
    (diffusers_folder(tmp_path) / "transformer" / lost).unlink()
    with pytest.raises(ModelNotFound, match=f"1 of 2 weight files are missing .*{lost}"):
        locate(tmp_path, variant="bf16")


def test_an_index_may_not_point_outside_its_folder(tmp_path: Path):
    diffusers_folder(tmp_path)
    write_index(tmp_path / "vae" / "diffusion_pytorch_model.safetensors.index.json", "../../secret.safetensors")
    with pytest.raises(CheckpointError, match="outside its folder"):
        locate(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_a_damaged_index_is_named(tmp_path: Path, content: str):
    write(diffusers_folder(tmp_path) / "vae" / "diffusion_pytorch_model.safetensors.index.json", content)
    with pytest.raises(CheckpointError, match=r"diffusion_pytorch_model\.safetensors\.index\.json"):
        locate(tmp_path)


def test_the_empty_prompt_rule_follows_the_layout_and_the_index(tmp_path: Path):
    assert not locate(diffusers_folder(tmp_path)).zero_empty
    write_model_index(tmp_path, zero_empty=True)
    assert locate(tmp_path).zero_empty
    assert ModelFiles(layout="original", root=tmp_path).zero_empty


def test_an_original_folder_takes_the_text_encoder_beside_it(tmp_path: Path):
    for name in ("dit.safetensors", "decoder.safetensors", "text_encoder/model.safetensors", "tokenizer/spiece.model"):
        write(tmp_path / name)
    files = locate(tmp_path)
    assert files.layout == "original" and files.text_encoder == tmp_path / "text_encoder"
    assert names(files)["vae"] == ["decoder.safetensors"]


def test_an_original_folder_takes_the_text_encoder_of_the_hubs_cache(tmp_path: Path, offline_cache: Path):
    write(tmp_path / "dit.safetensors")
    write(tmp_path / "decoder.safetensors")
    with pytest.raises(ModelNotFound, match=r"no folders text_encoder/ and tokenizer/.*download mochi --only text"):
        locate(tmp_path)
    snapshot = cached_snapshot(offline_cache, "genmo/mochi-1-preview")
    write(snapshot / "dit.safetensors")
    with pytest.raises(ModelNotFound, match=r"has genmo/mochi-1-preview without it.*download mochi --only text"):
        locate(tmp_path)
    write(snapshot / "text_encoder" / "model.safetensors")
    write(snapshot / "tokenizer" / "spiece.model")
    files = locate(tmp_path)
    assert (files.text_encoder, files.tokenizer) == (snapshot / "text_encoder", snapshot / "tokenizer")
    assert names(files)["text"] == ["model.safetensors"]


def test_a_pickled_text_encoder_is_refused_with_the_way_out(tmp_path: Path):
    for name in ("dit.safetensors", "decoder.safetensors", "text_encoder/pytorch_model.bin", "tokenizer/spiece.model"):
        write(tmp_path / name)
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is a pickle.*\.safetensors"):
        locate(tmp_path)


def test_only_the_parts_that_are_asked_for_must_be_there(tmp_path: Path):
    write(tmp_path / "dit.safetensors")
    assert names(locate(tmp_path, parts=["transformer"]))["transformer"] == ["dit.safetensors"]
    with pytest.raises(ModelNotFound, match=r"no encoder\.safetensors or decoder\.safetensors"):
        locate(tmp_path, parts=["vae"])
    with pytest.raises(InvalidRequest, match="its parts are transformer, vae, text"):
        locate(tmp_path, parts=["unet"])


def test_a_folder_that_holds_no_model_says_what_one_looks_like(tmp_path: Path):
    with pytest.raises(ModelNotFound, match=r"model_index\.json.*dit\.safetensors"):
        locate(tmp_path)


def test_a_path_that_does_not_exist_is_named_in_full(tmp_path: Path):
    with pytest.raises(ModelNotFound, match=f"no model at {tmp_path}/nowhere"):
        locate(tmp_path / "nowhere")


def test_a_hub_id_is_found_in_the_cache_without_a_network(offline_cache: Path):
    root = diffusers_folder(cached_snapshot(offline_cache, REPO))
    assert locate(REPO).root == root
    assert locate(REPO, revision=REVISION, variant="bf16").transformer[0].is_relative_to(root)


def test_a_hub_id_that_is_not_cached_says_where_it_looked_and_what_to_type(offline_cache: Path):
    with pytest.raises(ModelNotFound) as error:
        locate(REPO, revision="v2")
    assert str(offline_cache) in str(error.value)
    assert f"hf download {REPO} --revision v2" in str(error.value)


def test_a_cached_model_with_a_missing_part_says_what_to_type(offline_cache: Path):
    root = diffusers_folder(cached_snapshot(offline_cache, REPO))
    (root / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ModelNotFound, match=f"no weights in {root}/vae.*hf download {REPO}"):
        locate(REPO)


def test_only_the_needed_files_of_a_repository_are_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root = diffusers_folder(tmp_path)
    asked: list[str] = []

    def record(repo: str, *, revision: str | None, allow_patterns: list[str], local_files_only: bool) -> str:
        asked.extend(allow_patterns)
        return str(root)

    monkeypatch.setattr("huggingface_hub.snapshot_download", record)
    locate(REPO, variant="bf16", parts=["transformer", "text"])
    assert [name for name in asked if name.endswith(".safetensors")] == [
        "text_encoder/model.bf16.safetensors",
        "transformer/diffusion_pytorch_model.bf16-00001-of-00002.safetensors",
        "transformer/diffusion_pytorch_model.bf16-00002-of-00002.safetensors",
        "text_encoder/model-00001-of-00002.safetensors",
        "text_encoder/model-00002-of-00002.safetensors",
    ]


def test_the_identity_follows_the_content_and_not_the_place(tmp_path: Path):
    for folder in ("a", "b"):
        write(tmp_path / folder / "dit.safetensors", "weights")
    one, other = (locate(tmp_path / folder, parts=["transformer"]) for folder in "ab")
    assert model_identity(one) == model_identity(other)
    assert len(model_identity(one)) == 16
    write(tmp_path / "b" / "dit.safetensors", "weightz")
    assert model_identity(one) != model_identity(other)


@pytest.mark.parametrize("position", [0, 2**20 - 1, -1])
def test_the_identity_sees_the_header_and_the_end_of_a_large_file(tmp_path: Path, position: int):
    save_file({"tensor": torch.zeros(2 * 2**20)}, tmp_path / "dit.safetensors")
    files = ModelFiles(layout="original", root=tmp_path, transformer=(tmp_path / "dit.safetensors",))
    before = model_identity(files)
    content = bytearray((tmp_path / "dit.safetensors").read_bytes())
    content[position] ^= 1
    (tmp_path / "dit.safetensors").write_bytes(content)
    assert model_identity(files) != before
