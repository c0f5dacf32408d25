"""Where a model's files are: in a folder, in one file, or on the Hugging Face hub and in its cache."""

import json
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from daifuku.config import MOCHI_STATS, LatentStats
from daifuku.errors import CheckpointError, InvalidRequest, ModelNotFound
from daifuku.weights import hub
from daifuku.weights.files import check_shards, refuse_pickle
from daifuku.weights.loose import LooseFiles, loose_files, loose_tokenizer, parts_of
from daifuku.weights.names import PART_NAMES, Layout, Naming, Part

FOLDERS = {"transformer": "transformer", "vae": "vae", "text": "text_encoder"}
"""The parts of a model, and the folder of each in the diffusers layout."""

STEM = "diffusion_pytorch_model"
STEMS = {"transformer": STEM, "vae": STEM, "text": "model"}
"""What the weight files in those folders are called."""

INSIDE: dict[str, tuple[Part, ...]] = {"transformer": ("dit",), "vae": ("encoder", "decoder"), "text": ("text",)}
"""The parts of a model by what they are read as."""

ORIGINAL_FILES = {"transformer": ("dit.safetensors",), "vae": ("encoder.safetensors", "decoder.safetensors")}

TEXT_MODEL = "genmo/mochi-1-preview"
"""Where the text encoder and tokenizer of the published model are; the original layout comes without them."""

MAX_JSON_BYTES = 16 * 2**20

TEXT_DOWNLOAD = "daifuku download mochi --only text"

SMALL_FILES = ("model_index.json", "generation_config.json", "*/config.json", "*.index*.json", "tokenizer/*")


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """A model's files. A part that was not asked for is empty, or None."""

    layout: Layout
    root: Path
    transformer: tuple[Path, ...] = ()
    vae: tuple[Path, ...] = ()
    """Diffusers: the file or shards of the whole VAE. Original: one file for each half that is there."""
    stats: LatentStats = MOCHI_STATS
    text_encoder: Path | None = None
    """The folder of a text encoder as `transformers` writes it; None for a T5 that was found by its tensors."""
    text_weights: tuple[Path, ...] = ()
    text_variant: str | None = None
    """The variant that the text encoder's files carry in their names, which `load_text_encoder` wants to know."""
    tokenizer: Path | None = None
    """Its folder or its one file."""
    model_index: dict[str, Any] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)
    """The model's own request defaults, from generation_config.json."""

    @property
    def zero_empty(self) -> bool:
        """Whether an empty prompt takes no part in attention: always so in the original layout."""
        return self.layout == "original" or bool(self.model_index.get("force_zeros_for_empty_prompt", False))


@dataclass(frozen=True, kw_only=True)
class _TextFiles:
    folder: Path | None
    weights: tuple[Path, ...]
    variant: str | None
    tokenizer: Path


def locate(
    model: str | Path,
    *,
    revision: str | None = None,
    variant: str | None = None,
    parts: Collection[str] | None = None,
) -> ModelFiles:
    """Finds the files of a model folder, a single weight file, or a hub id such as `genmo/mochi-1-preview`.

    In a folder that is of neither layout, files of any name are recognised by their tensors, as is a single file, which
    may hold several parts.
    A hub id is downloaded into the hub's cache as far as `parts` (some of "transformer", "vae", "text"; all when None)
    need it. `variant`, for example "bf16", picks the files published under that name; a part that was published only
    plainly then comes plainly. Raises ModelNotFound, which says where it looked and what is missing.
    """
    wanted = frozenset(FOLDERS if parts is None else parts)
    if unknown := wanted.difference(FOLDERS):
        raise InvalidRequest(f"a model has no part {min(unknown)!r}: its parts are {', '.join(FOLDERS)}")
    path = Path(model).expanduser()
    if path.is_file():
        return _by_tensors(path, (path,), wanted)
    if path.is_dir():
        return _folder(path, variant, wanted)
    if not hub.is_id(str(model)):
        raise ModelNotFound(
            f"there is no model at {path.absolute()}, and {str(model)!r} is not a hub id like genmo/mochi-1-preview"
        )
    return _from_hub(str(model), revision, variant, wanted)


def _from_hub(repo: str, revision: str | None, variant: str | None, wanted: frozenset[str]) -> ModelFiles:
    """Small files first: they tell which of the large ones are needed."""
    root = hub.download(repo, revision, SMALL_FILES)
    if (root / "model_index.json").is_file():
        needed = sorted(wanted)
        for choice in dict.fromkeys((variant, None)):
            folders = {part: root / FOLDERS[part] for part in needed}
            names = {part: _weight_names(folder, STEMS[part], choice) for part, folder in folders.items()}
            if needed:
                root = hub.download(repo, revision, [f"{FOLDERS[part]}/{n}" for part in needed for n in names[part]])
            needed = [part for part in needed if not any((folders[part] / name).is_file() for name in names[part])]
    else:
        names = [name for part in wanted & ORIGINAL_FILES.keys() for name in ORIGINAL_FILES[part]]
        root = hub.download(repo, revision, names)
    try:
        return _folder(root, variant, wanted)
    except ModelNotFound as error:
        raise ModelNotFound(f"{error}. Where there is a network: {hub.download_command(repo, revision)}") from error


def _folder(root: Path, variant: str | None, wanted: frozenset[str]) -> ModelFiles:
    if _is_diffusers(root):
        return _diffusers_folder(root, variant, wanted)
    if any((root / name).is_file() for names in ORIGINAL_FILES.values() for name in names):
        return _original_folder(root, wanted)
    weights, _ = _find_weights(root, STEM, variant)
    if weights:
        return _by_tensors(root, weights, wanted)
    loose = loose_files(root)
    if loose.by_part:
        return _loose_folder(root, loose, wanted)
    raise ModelNotFound(
        f"{root} is no model folder: a model has model_index.json, transformer/ and vae/ (diffusers layout), "
        "or dit.safetensors and decoder.safetensors (original layout), or weight files of any name with its tensors"
    )


def _is_diffusers(root: Path) -> bool:
    """Other software keeps files of any name in a folder vae/ too."""
    vae = any((root / "vae").glob("config.json")) or any((root / "vae").glob(f"{STEM}*"))
    return vae or (root / "model_index.json").exists() or (root / "transformer").exists()


def _diffusers_folder(root: Path, variant: str | None, wanted: frozenset[str]) -> ModelFiles:
    # Text encoders are often published plainly only, so they do not tell whether a variant exists.
    found = {part: _find_weights(root / FOLDERS[part], STEMS[part], variant) for part in wanted - {"text"}}
    choices = [choice for _, choice in found.values()]
    if variant is not None and choices and not any(choices):
        raise ModelNotFound(f"{root} has no weights of variant {variant!r}; {_what_is_there(root, wanted)}")
    for part, (weights, _) in found.items():
        if not weights:
            raise ModelNotFound(f"there are no weights in {root / FOLDERS[part]}; {_what_is_there(root, wanted)}")
    text = _text_files(root, variant) if "text" in wanted else None
    return ModelFiles(
        layout="diffusers",
        root=root,
        transformer=found["transformer"][0] if "transformer" in wanted else (),
        vae=found["vae"][0] if "vae" in wanted else (),
        stats=_latent_stats(root / "vae" / "config.json"),
        text_encoder=None if text is None else text.folder,
        text_weights=() if text is None else text.weights,
        text_variant=None if text is None else text.variant,
        tokenizer=None if text is None else text.tokenizer,
        model_index=_read_json(root / "model_index.json"),
        defaults=_read_json(root / "generation_config.json"),
    )


def _original_folder(root: Path, wanted: frozenset[str]) -> ModelFiles:
    found = {part: tuple(root / name for name in names) for part, names in ORIGINAL_FILES.items() if part in wanted}
    there = {part: tuple(path for path in paths if path.is_file()) for part, paths in found.items()}
    for part, paths in there.items():
        if not paths:
            raise ModelNotFound(f"there is no {' or '.join(ORIGINAL_FILES[part])} in {root}")
    text = _text_files(root, None) if "text" in wanted else None
    return ModelFiles(
        layout="original",
        root=root,
        transformer=there.get("transformer", ()),
        vae=there.get("vae", ()),
        text_encoder=None if text is None else text.folder,
        text_weights=() if text is None else text.weights,
        tokenizer=None if text is None else text.tokenizer,
        defaults=_read_json(root / "generation_config.json"),
    )


def _loose_folder(root: Path, loose: LooseFiles, wanted: frozenset[str]) -> ModelFiles:
    """Files of any name. Raises ModelNotFound for a part that none of them holds, naming what there is."""
    found = {part: loose.files(*INSIDE[part]) for part in wanted if part != "text"}
    for part, paths in found.items():
        if not paths:
            there = "; ".join(f"the {PART_NAMES[held]} in {path.relative_to(root)}" for held, path in loose.each())
            raise ModelNotFound(f"no file in {root} holds the {part} of a Mochi model; there is {there}")
    return _with_text(
        root,
        wanted,
        layout=_layout(loose.naming("dit"), loose.naming("decoder"), loose.naming("encoder")),
        transformer=found.get("transformer", ()),
        vae=found.get("vae", ()),
    )


def _by_tensors(root: Path, weights: tuple[Path, ...], wanted: frozenset[str]) -> ModelFiles:
    """A file, or the shards of one, whatever its name: its tensors tell which parts it holds."""
    namings: dict[Part, Naming] = {found.part: found.naming for found in parts_of(*weights)}
    there = {name for name, parts in INSIDE.items() if namings.keys() & set(parts)}
    if not there and len(wanted) > 1:
        raise ModelNotFound(f"{root} holds no part of a Mochi model in a known layout")
    lost = wanted - there
    # A whole model whose text encoder lies beside it is whole.
    if there and lost and (lost != {"text"} or len(there) < 2):
        raise ModelNotFound(
            f"{root} holds the {' and '.join(sorted(there))} and nothing else: for the {' and '.join(sorted(lost))} "
            "give a whole model folder"
        )
    return _with_text(
        root,
        wanted,
        layout=_layout(namings.get("dit"), namings.get("decoder"), namings.get("encoder")),
        transformer=weights if "transformer" in wanted else (),
        vae=weights if "vae" in wanted else (),
        text=weights if "text" in wanted and ("text" in there or not there) else (),
    )


def _with_text(
    root: Path,
    wanted: frozenset[str],
    *,
    layout: Layout,
    transformer: tuple[Path, ...],
    vae: tuple[Path, ...],
    text: tuple[Path, ...] = (),
) -> ModelFiles:
    """Parts that were found by their tensors, and what lies beside them: text encoder and tokenizer, settings."""
    folder = root if root.is_dir() else root.parent
    found: _TextFiles | None = None
    if "text" in wanted:
        found = _loose_text(folder, text) if text else _text_files(folder, None)
    return ModelFiles(
        layout=layout,
        root=root,
        transformer=transformer,
        vae=vae,
        stats=_latent_stats(vae[0].parent / "config.json") if vae and layout == "diffusers" else MOCHI_STATS,
        text_encoder=None if found is None else found.folder,
        text_weights=() if found is None else found.weights,
        tokenizer=None if found is None else found.tokenizer,
        defaults=_read_json(folder / "generation_config.json"),
    )


def _layout(*namings: Naming | None) -> Layout:
    """Of the first part that is there."""
    return "diffusers" if next(filter(None, namings), None) == "diffusers" else "original"


def _text_files(root: Path, variant: str | None) -> _TextFiles:
    """The text encoder beside the other parts, as a folder or a file, else the published one in the hub's cache."""
    folder = root / FOLDERS["text"]
    weights, choice = _find_weights(folder, STEMS["text"], variant)
    known = [name for names in ORIGINAL_FILES.values() for name in names]
    if not weights and (loose := loose_files(root, known).files("text")):
        return _loose_text(root, loose)
    if not folder.is_dir():
        root = _cached_text_encoder(root)
        folder = root / FOLDERS["text"]
        weights, choice = _find_weights(folder, STEMS["text"], variant)
    if not weights:
        raise ModelNotFound(f"there are no weights of the text encoder in {folder}")
    tokenizer = root / "tokenizer"
    if not tokenizer.is_dir():
        found = loose_tokenizer(root)
        if found is None:
            raise ModelNotFound(f"the text encoder in {folder} needs its tokenizer in {tokenizer}, which is not there")
        tokenizer = found
    return _TextFiles(folder=folder, weights=weights, variant=choice, tokenizer=tokenizer)


def _loose_text(root: Path, weights: tuple[Path, ...]) -> _TextFiles:
    """A T5 in files of any name, and the tokenizer beside it, else that of the published model in the hub's cache."""
    found = root / "tokenizer" if (root / "tokenizer").is_dir() else loose_tokenizer(root)
    if found is None:
        try:
            found = hub.download(TEXT_MODEL, None, ("tokenizer/*",), cached_only=True) / "tokenizer"
        except ModelNotFound as error:
            raise ModelNotFound(
                f"the T5 in {weights[0]} needs its tokenizer: put the folder tokenizer/ or the file spiece.model or "
                f"tokenizer.json of {TEXT_MODEL} into {root}; {error}"
            ) from error
    return _TextFiles(folder=None, weights=weights, variant=None, tokenizer=found)


def _cached_text_encoder(root: Path) -> Path:
    try:
        cached = hub.download(TEXT_MODEL, None, (f"{FOLDERS['text']}/*", "tokenizer/*"), cached_only=True)
        if (cached / FOLDERS["text"]).is_dir():
            return cached
        reason = f"the hub's cache has {TEXT_MODEL} without it"
    except ModelNotFound as error:
        reason = str(error)
    raise ModelNotFound(
        f"there is no text encoder: {root} has no folders text_encoder/ and tokenizer/, no file holds a T5, "
        f"and {reason}. Where there is a network: {TEXT_DOWNLOAD}"
    )


def _find_weights(folder: Path, stem: str, variant: str | None) -> tuple[tuple[Path, ...], str | None]:
    """The weight files of a folder and the variant they are: the one asked for, else the plain one, else nothing."""
    for choice in dict.fromkeys((variant, None)):
        names = _weight_names(folder, stem, choice)
        there = [name for name in names if (folder / name).is_file()]
        if there and len(there) < len(names):
            lost = [name for name in names if name not in there]
            raise ModelNotFound(f"{len(lost)} of {len(names)} weight files are missing in {folder}: {', '.join(lost)}")
        if there:
            return tuple(folder / name for name in names), choice
    return (), None


def _weight_names(folder: Path, stem: str, variant: str | None) -> list[str]:
    """The files that should hold a folder's weights: the shards that an index lists, else one file."""
    if variant is None:
        single, indices = f"{stem}.safetensors", [f"{stem}.safetensors.index.json"]
    else:
        # Libraries have put the variant at each of these places over time.
        single = f"{stem}.{variant}.safetensors"
        indices = [f"{stem}.safetensors.index.{variant}.json", f"{single}.index.json"]
        indices += [f"{stem}.safetensors.{variant}.index.json"]
    for index in indices:
        if (folder / index).is_file():
            return _shards(folder / index)
    if (folder / "pytorch_model.bin").is_file() and not (folder / single).is_file() and variant is None:
        refuse_pickle(folder / "pytorch_model.bin")
    return [single]


def _shards(index: Path) -> list[str]:
    names = _read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise CheckpointError(f"{index} lists no weight files (it has no weight_map); download or copy it again")
    check_shards(index, list(names.values()))
    return sorted(set(names.values()))


def _what_is_there(root: Path, wanted: frozenset[str]) -> str:
    """The variants that could have been asked for."""
    variants: set[str] = set()
    for part in wanted:
        pattern = re.compile(rf"{STEMS[part]}\.(\w+)(-\d+-of-\d+)?\.safetensors")
        names = [path.name for path in (root / FOLDERS[part]).glob(f"{STEMS[part]}*.safetensors")]
        variants |= {found[1] for name in names if (found := pattern.fullmatch(name))}
    if not variants:
        return "it should hold .safetensors files as diffusers writes them"
    return f"the variant that is there: {', '.join(sorted(variants))}"


def _latent_stats(config: Path) -> LatentStats:
    """The statistics that a VAE's configuration names, else those of the published VAE."""
    found = _read_json(config)
    mean, std = found.get("latents_mean"), found.get("latents_std")
    if mean is None or std is None:
        return MOCHI_STATS
    return LatentStats(mean=tuple(map(float, mean)), std=tuple(map(float, std)))


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a file, empty when there is no file."""
    if not path.is_file():
        return {}
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ValueError(f"it has more than {MAX_JSON_BYTES} bytes")
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no JSON ({error}); download or copy it again") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} should hold a JSON object, not {type(found).__name__}")
    return found
