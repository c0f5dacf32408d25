"""From any files that are read here to a layout of other software, one tensor at a time."""

import json
import shutil
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from torch import Tensor

from daifuku.config import MOCHI_STATS
from daifuku.errors import InvalidRequest, ModelNotFound
from daifuku.weights.files import Entry, write_json, write_safetensors, write_shards
from daifuku.weights.forms import Form, Holds, decoded_words, gguf_entries, safetensors_entries
from daifuku.weights.gguf_write import GGUFEntry, write_gguf
from daifuku.weights.load import DTYPES, load_dit, load_vae
from daifuku.weights.locate import STEM, STEMS
from daifuku.weights.lora import holds_lora, read_lora
from daifuku.weights.lora_write import LoraTarget, lora_content
from daifuku.weights.names import Naming, Part
from daifuku.weights.opened import Opened, opened
from daifuku.weights.packing import FP8, GGUF_KINDS
from daifuku.weights.publish import Conversion, Output, Report, check_file_name, check_space, check_target
from daifuku.weights.rearrange import Piece, pieces
from daifuku.weights.save import MAX_SHARD_BYTES, transformer_config, vae_config, write_model_index, write_scheduler
from daifuku.weights.sizes import t5_sizes

Target = Literal["original", "diffusers", "comfy", "gguf"]

TARGETS: tuple[Target, ...] = ("original", "diffusers", "comfy", "gguf")

PRECISIONS = DTYPES | {"fp8": FP8}

QUANTISED: Mapping[str, Target] = {
    "fp8_scaled": "comfy",
    "nf4": "diffusers",
    **{kind.lower(): "gguf" for kind in GGUF_KINDS},
}
"""What weights can be quantised as, and the layout that holds it."""

NF4_CONFIG: Mapping[str, Any] = {
    "quant_method": "bitsandbytes",
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_compute_dtype": "bfloat16",
    "bnb_4bit_use_double_quant": False,
    "llm_int8_skip_modules": ["time_embed", "norm_out", "proj_out"],
}
"""How a configuration tells diffusers that the linear layers of all blocks are NF4."""

GGUF_ARCHITECTURE = "mochi"

_FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10, "BF16": 32}
"""What `general.file_type` says most of a GGUF file is (llama.cpp's list, as far as it is plain)."""

_HALVES: tuple[Part, ...] = ("encoder", "decoder")

_HOLDS: Mapping[Target, Holds] = {"original": "plain", "diffusers": "plain", "comfy": "scaled", "gguf": "blocks"}

_COMFY_FILES: Mapping[str, tuple[Part, ...]] = {
    "diffusion_models/mochi.safetensors": ("dit",),
    "vae/mochi_vae.safetensors": _HALVES,
    "text_encoders/t5xxl.safetensors": ("text",),
}

_ALONE: Mapping[Part, str] = {"dit": "model.diffusion_model.", "encoder": "encoder.", "decoder": "decoder.", "text": ""}
_TOGETHER: Mapping[Part, str] = {
    "dit": "model.diffusion_model.",
    "encoder": "vae.encoder.",
    "decoder": "vae.decoder.",
    "text": "text_encoders.t5xxl.transformer.",
}
"""What names begin with in files for ComfyUI."""

_OF_OLD_WEIGHTS = ("dtype", "torch_dtype", "quantization_config", "_name_or_path")
"""What a configuration says about the files that it came with."""

Found = Mapping[Part, Sequence[Piece]]

E = TypeVar("E", Entry, GGUFEntry)


def plan_convert(
    source: str | Path,
    target: str | Path,
    *,
    to: str,
    dtype: str | None = None,
    quantise: str | None = None,
    only: Collection[str] = (),
    force: bool = False,
    revision: str | None = None,
    variant: str | None = None,
) -> Conversion:
    """What there is to do to write a model or a LoRA anew; `publish.run` does it. Reads headers of a model only.

    `to` is one of TARGETS, `dtype` of PRECISIONS, `quantise` of QUANTISED; without the last two weights stay what they
    are as far as the layout holds that. `only`: some of "dit", "vae" and "text". Raises InvalidRequest for what does
    not go together, ModelNotFound, CheckpointError, and UnwritableOutput when the target is there or the disk too full.
    """
    form = _form(to, dtype, quantise)
    to, target = cast(Target, to), Path(target).expanduser()
    if holds_lora(source):
        found = _lora(Path(source).expanduser(), target, to, form, only)
        check_target(target, Path(source).expanduser(), is_file=True, force=force)
    else:
        model = opened(source, only=only, revision=revision, variant=variant)
        found = _model(model, target, to, form)
        check_target(target, model.root, is_file=_is_file(target), force=force)
    check_space(found)
    return found


def _form(to: str, dtype: str | None, quantise: str | None) -> Form:
    """Raises InvalidRequest for what no file can be."""
    for what, given, known in (
        ("--to", to, TARGETS),
        ("--dtype", dtype, PRECISIONS),
        ("--quantise", quantise, QUANTISED),
    ):
        if given is not None and given not in known:
            raise InvalidRequest(f"there is no {what} {given!r}: choose one of {', '.join(known)}")
    if quantise is not None and QUANTISED[quantise] != to:
        fitting = [name for name, layout in QUANTISED.items() if layout == to]
        instead = f"this layout holds {', '.join(fitting)}" if fitting else "this layout holds --dtype fp8"
        raise InvalidRequest(f"{quantise} is written with --to {QUANTISED[quantise]}, not with --to {to}; {instead}")
    if dtype == "fp8" and (quantise is not None or to == "gguf"):
        raise InvalidRequest("--dtype fp8 quantises by itself, and GGUF does not have it: try --quantise q8_0")
    package = "bitsandbytes" if quantise == "nf4" else "gguf" if to == "gguf" and quantise else None
    if package is not None and find_spec(package) is None:
        raise InvalidRequest(f"the package {package} packs {quantise}, and is not installed: pip install {package}")
    kind = quantise.upper() if quantise and to == "gguf" else quantise
    return Form(dtype=None if dtype is None else PRECISIONS[dtype], quantise=kind)


def _is_file(target: Path) -> bool:
    return target.suffix in (".safetensors", ".gguf")


def _lora(source: Path, target: Path, to: Target, form: Form, only: Collection[str]) -> Conversion:
    if to == "gguf" or form.quantise or form.dtype == FP8 or only:
        raise InvalidRequest(
            f"{source} is a LoRA: it is converted --to original, diffusers or comfy, with --dtype float32, bfloat16 or "
            "float16 if you like"
        )
    check_file_name(target, ".safetensors")
    content = lora_content(read_lora(source), cast(LoraTarget, to), form.dtype)
    write = partial(_write_safetensors, content.entries, content.metadata)
    return Conversion(target=target, outputs=(Output(path=".", num_bytes=_size(content.entries), write=write),))


def _model(model: Opened, target: Path, to: Target, form: Form) -> Conversion:
    if to in ("original", "diffusers") and _is_file(target):
        raise InvalidRequest(f"--to {to} writes a folder, so OUT cannot be {target}; --to comfy writes one file")
    if to == "gguf" or _is_file(target):
        check_file_name(target, ".gguf" if to == "gguf" else ".safetensors")
    configs = _checked(model, to)
    notes = [f"without the {part}: {reason}" for part, reason in model.missing.items()]
    parts: list[Part] = [part for part in model.sources if to != "gguf" or part == "dit"]
    if to != "diffusers" and not model.zero_empty:
        notes.append(f"here an empty prompt takes part in attention, and with --to {to} it never does")
    if len(parts) < len(model.sources):
        notes.append("a GGUF file holds the transformer alone: all other parts are left out")
    found: Found = {part: list(pieces(model.sources[part], _naming(part, to))) for part in parts}
    holds = _HOLDS[to]
    if words := decoded_words([piece for some in found.values() for piece in some], form, holds):
        notes.append(f"--to {to} does not hold {', '.join(words)}: such weights become bfloat16")
    if to == "gguf":
        outputs = [_gguf(found["dit"], form)]
    elif _is_file(target):
        outputs = [_one_file(found, form)]
        if model.tokenizer is not None or model.defaults:
            notes.append("a tokenizer and defaults of requests have no place in one file; OUT may also be a folder")
    else:
        folders = _diffusers(found, form, configs) if to == "diffusers" else _folder(found, form, to)
        outputs = [*folders, *_text_folder(model, found, form, to), *_beside(model, to)]
    return Conversion(target=target, outputs=tuple(outputs), notes=tuple(notes))


def _naming(part: Part, to: Target) -> Naming:
    return "transformers" if part == "text" else "diffusers" if to == "diffusers" else "original"


def _checked(model: Opened, to: Target) -> dict[str, Any]:
    """Configurations of the diffusers layout. Raises what loading raises, and InvalidRequest."""
    configs: dict[str, Any] = {}
    if "dit" in model.sources:
        dit = load_dit(model.located["transformer"], device="meta")
        configs["dit"] = transformer_config(dit.config) if to == "diffusers" else None
    elif to == "gguf":
        raise ModelNotFound(f"{model.root} holds no transformer, and a GGUF file holds nothing else; try --to comfy")
    if "vae" in model.located and to != "gguf":
        vae = load_vae(model.located["vae"], device="meta")
        if to != "diffusers" and model.stats != MOCHI_STATS:
            raise InvalidRequest(
                f"the VAE of {model.root} has latent statistics of its own, and --to {to} has no place for them: "
                "convert it --to diffusers, or the other parts with --only dit --only text"
            )
        configs["vae"] = vae_config(vae) if to == "diffusers" else None
    return configs


def _diffusers(found: Found, form: Form, configs: Mapping[str, Any]) -> Iterator[Output]:
    folders: tuple[tuple[str, str, tuple[Part, ...]], ...] = (
        ("transformer", "dit", ("dit",)),
        ("vae", "vae", _HALVES),
    )
    for folder, part, inside in folders:
        if part in configs:
            entries = [entry for each in inside for entry in safetensors_entries(found[each], "", form, "plain")]
            quantised = {"quantization_config": NF4_CONFIG} if form.quantise and part == "dit" else {}
            yield _shards(folder, STEM, configs[part] | quantised, entries)


def _folder(found: Found, form: Form, to: Target) -> Iterator[Output]:
    """Of the original layout one file for each part; of ComfyUI's both halves of the VAE are in one."""
    if to == "original":
        parts: tuple[Part, ...] = ("dit", *_HALVES)
        for part in parts:
            if part in found:
                yield _file(f"{part}.safetensors", safetensors_entries(found[part], "", form, "plain"))
        return
    for path, parts in _COMFY_FILES.items():
        some: Found = {part: found[part] for part in parts if part in found}
        if some:
            yield replace(_one_file(some, form), path=path)


def _one_file(found: Found, form: Form) -> Output:
    """A part by itself is called as ComfyUI's loader of that part expects it, several as that of a checkpoint does."""
    alone = any(found.keys() <= set(parts) for parts in _COMFY_FILES.values())
    prefixes = _ALONE if alone else _TOGETHER
    entries = [
        entry for part, some in found.items() for entry in safetensors_entries(some, prefixes[part], form, "scaled")
    ]
    return _file(".", entries)


def _gguf(found: Sequence[Piece], form: Form) -> Output:
    entries = gguf_entries(found, form)
    sizes: Counter[str] = Counter()
    for entry in entries:
        sizes[entry.kind] += entry.num_bytes
    # As other tools do: what most of it is.
    metadata = {"general.architecture": GGUF_ARCHITECTURE, "general.quantization_version": 2}
    if (kind := sizes.most_common(1)[0][0]) in _FILE_TYPES:
        metadata["general.file_type"] = _FILE_TYPES[kind]
    return Output(path=".", num_bytes=_size(entries), write=partial(_write_gguf, entries, metadata))


def _text_folder(model: Opened, found: Found, form: Form, to: Target) -> Iterator[Output]:
    """The text encoder as `transformers` has it."""
    if "text" not in found or to == "comfy":
        return
    # NF4 is of the transformer alone: transformers has its own rules about what it reads so.
    entries = safetensors_entries(found["text"], "", replace(form, quantise=None), "plain")
    config: dict[str, Any] = {"architectures": ["T5EncoderModel"], "model_type": "t5"}
    if model.text_config is None:
        config |= t5_sizes(model.sources["text"].shapes)
    else:
        own = json.loads(model.text_config.read_text("utf-8"))
        config |= {key: value for key, value in own.items() if key not in _OF_OLD_WEIGHTS}
    yield _shards("text_encoder", STEMS["text"], config, entries)


def _beside(model: Opened, to: Target) -> Iterator[Output]:
    """What belongs to a model and is no weights."""
    if model.tokenizer is not None:
        yield Output(path="tokenizer", num_bytes=0, write=partial(_copy, model.tokenizer))
    if model.defaults:
        yield Output(path="generation_config.json", num_bytes=0, write=partial(_write_json, model.defaults))
        if (own := model.root / "loras").is_dir():
            yield Output(path="loras", num_bytes=0, write=partial(_copy, own))
    if to == "diffusers" and "dit" in model.sources:
        yield Output(path="model_index.json", num_bytes=0, write=partial(_write_index, model.zero_empty))
        own = model.root / "scheduler"
        write = partial(_copy, own) if own.is_dir() else _write_scheduler
        yield Output(path="scheduler", num_bytes=0, write=write)


def _file(path: str, entries: Sequence[Entry]) -> Output:
    return Output(path=path, num_bytes=_size(entries), write=partial(_write_safetensors, entries, {}))


def _shards(path: str, stem: str, config: Mapping[str, Any], entries: Sequence[Entry]) -> Output:
    return Output(path=path, num_bytes=_size(entries), write=partial(_write_shards, stem, config, entries))


def _size(entries: Sequence[Entry] | Sequence[GGUFEntry]) -> int:
    return sum(entry.num_bytes for entry in entries)


def _reported(entries: Sequence[E], report: Report) -> list[E]:
    """The same entries, which tell when each was read."""

    def read(entry: E) -> Tensor:
        tensor = entry.read()
        report(entry.num_bytes)
        return tensor

    return [replace(entry, read=partial(read, entry)) for entry in entries]


def _write_safetensors(entries: Sequence[Entry], metadata: Mapping[str, str], path: Path, report: Report) -> None:
    write_safetensors(path, _reported(entries, report), metadata)


def _write_shards(stem: str, config: Mapping[str, Any], entries: Sequence[Entry], path: Path, report: Report) -> None:
    write_shards(path, stem, _reported(entries, report), MAX_SHARD_BYTES)
    write_json(path / "config.json", config)


def _write_gguf(entries: Sequence[GGUFEntry], metadata: Mapping[str, str | int], path: Path, report: Report) -> None:
    write_gguf(path, _reported(entries, report), metadata)


def _write_json(content: Mapping[str, Any], path: Path, report: Report) -> None:
    write_json(path, content)


def _write_index(zero_empty: bool, path: Path, report: Report) -> None:
    write_model_index(path.parent, zero_empty=zero_empty)


def _write_scheduler(path: Path, report: Report) -> None:
    write_scheduler(path.parent)


def _copy(source: Path, path: Path, report: Report) -> None:
    """The files of a folder, or one file, into a folder."""
    path.mkdir(parents=True)
    for file in sorted(source.iterdir()) if source.is_dir() else [source]:
        if file.is_file():
            shutil.copyfile(file, path / file.name)
