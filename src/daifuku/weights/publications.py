"""Who publishes Mochi 1 as what, and which files of a repository make the parts that a user asks for."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from daifuku.errors import InvalidRequest

PARTS = ("dit", "vae", "text")

NAME = "mochi"
"""What the published model is called where no repository is named."""

DEFAULT_VARIANT = "bf16"

TOKENIZER = "tokenizer"


@dataclass(frozen=True, kw_only=True)
class Publication:
    """Files of one repository on the hub."""

    repo: str
    variant: str | None = None
    """Of a diffusers folder: the name that the weight files carry."""
    parts: tuple[str, ...] = PARTS
    """What of the repository is taken."""
    files: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The files of each part, where they are named; else they are chosen by `choose`."""
    into: str = ""
    """Where they belong below the folder of a whole model."""


GENMO = "genmo/mochi-1-preview"
COMFY = "Comfy-Org/mochi_preview_repackaged"

PUBLISHED: Mapping[str, tuple[Publication, ...]] = {
    "bf16": (Publication(repo=GENMO, variant="bf16"),),
    "fp8": (
        Publication(
            repo=COMFY,
            files={
                "dit": ("split_files/diffusion_models/mochi_preview_fp8_scaled.safetensors",),
                "vae": ("split_files/vae/mochi_vae.safetensors",),
                "text": ("split_files/text_encoders/t5xxl_fp8_e4m3fn_scaled.safetensors",),
            },
        ),
        # Single files of T5 come without their tokenizer.
        Publication(repo=GENMO, parts=(TOKENIZER,)),
    ),
    "nf4": (
        Publication(repo="imnotednamode/mochi-1-preview-mix-nf4", parts=("dit",), into="transformer"),
        Publication(repo=GENMO, variant="bf16", parts=("vae", "text")),
    ),
    "fast": (Publication(repo="FastVideo/FastMochi-diffusers"),),
}
"""The variants of the published model."""

SMALL = re.compile(r"(model_index|generation_config|scheduler/scheduler_config)\.json")

_FOLDERS = {"dit": ("transformer",), "vae": ("vae",), "text": ("text_encoder", "tokenizer"), TOKENIZER: ("tokenizer",)}
_WEIGHTS = re.compile(r".*\.(safetensors|gguf)")
_SHARD = re.compile(r"-\d{5}-of-\d{5}(?=\.)")


def publications(model: str, variant: str | None, parts: Collection[str]) -> tuple[Publication, ...]:
    """Where to look for `mochi` or a hub id. Raises InvalidRequest for a variant of mochi that nobody publishes."""
    if model != NAME:
        return (Publication(repo=model, variant=variant, parts=tuple(parts)),)
    if (variant or DEFAULT_VARIANT) not in PUBLISHED:
        raise InvalidRequest(
            f"{NAME} has no variant {variant!r}; there are {', '.join(PUBLISHED)}. Any other file comes by its "
            "repository: daifuku download OWNER/NAME"
        )
    found: list[Publication] = []
    for each in PUBLISHED[variant or DEFAULT_VARIANT]:
        wanted = tuple(part for part in each.parts if part in parts or (part == TOKENIZER and "text" in parts))
        if wanted:
            found.append(replace(each, parts=wanted))
    return tuple(found)


def choose(publication: Publication, names: Sequence[str]) -> list[str]:
    """The files to take out of all that a repository has. Raises InvalidRequest when that is none, or not clear."""
    if publication.files:
        found = [name for part in publication.parts for name in publication.files[part]]
        if lost := [name for name in found if name not in names]:
            raise InvalidRequest(f"{publication.repo} no longer has {lost[0]}; see what it has on its page")
        return found
    if publication.parts == (TOKENIZER,) or "model_index.json" in names or _in(names, "transformer"):
        return _of_folders(publication, names)
    if "config.json" in names:
        return _of_one_folder(publication, names)
    return _single(publication, names)


def part_of(name: str) -> str:
    """The part that a weight file is by its name: all there is to go by before it is downloaded."""
    text = name.lower()
    if re.search(r"t5|text_enc|umt5", text):
        return "text"
    return "vae" if re.search(r"vae|encoder|decoder|taem", text) else "dit"


def _of_folders(publication: Publication, names: Sequence[str]) -> list[str]:
    """Of the diffusers layout: each part in the variant that was asked for, else plainly where it has no other."""
    repo, variant = publication.repo, publication.variant
    # A tokenizer on its own makes no whole model, which is what these files would say.
    found = [name for name in names if SMALL.fullmatch(name)] if publication.parts != (TOKENIZER,) else []
    seen: set[str] = set()
    for part in publication.parts:
        inside = [name for folder in _FOLDERS[part] for name in _in(names, folder)]
        weights = [name for name in inside if _WEIGHTS.fullmatch(name)]
        if part != TOKENIZER and not weights:
            raise InvalidRequest(f"{repo} has no {part}; it has {_shown(_in_any_folder(names))}")
        kept = [name for name in weights if _variant(name) == variant] or [n for n in weights if _variant(n) is None]
        seen |= {other for name in weights if (other := _variant(name)) is not None}
        if not kept and weights:
            raise InvalidRequest(f"{repo} has its {part} only as --variant {' or '.join(sorted(seen))}")
        takes = {_variant(name) for name in kept}
        indices = [name for name in inside if ".index." in name and _index_variant(name) in takes]
        rest = [n for n in inside if n not in weights and ".index." not in n and not n.endswith((".bin", ".msgpack"))]
        found += [*kept, *indices, *rest]
    if variant is not None and "dit" in publication.parts and variant not in seen:
        has = f"; it has {', '.join(sorted(seen))}" if seen else ": leave --variant out"
        raise InvalidRequest(f"{repo} has no variant {variant!r}{has}")
    return list(dict.fromkeys(found))


def _of_one_folder(publication: Publication, names: Sequence[str]) -> list[str]:
    """A repository that is one folder of the diffusers layout, such as a transformer on its own, or T5."""
    top = [name for name in names if "/" not in name]
    weights = [name for name in top if _WEIGHTS.fullmatch(name)]
    if not weights:
        raise InvalidRequest(
            f"{publication.repo} has no .safetensors or .gguf files, and pickles are never opened here. The published "
            f"T5 as safetensors: daifuku download {NAME} --only text"
        )
    kept = [name for name in weights if _variant(name) == publication.variant] or weights
    return [*kept, *(name for name in top if name.endswith((".json", ".model")))]


def _single(publication: Publication, names: Sequence[str]) -> list[str]:
    """Of single files, each a part on its own."""
    repo, variant = publication.repo, publication.variant
    weights = [name for name in names if _WEIGHTS.fullmatch(name) and not name.startswith("all_in_one/")]
    found: list[str] = []
    for part in publication.parts:
        of_part = [name for name in weights if part_of(name) == part]
        of_variant = [name for name in of_part if variant is not None and variant.lower() in name.lower()]
        kept = of_variant or of_part
        # The halves of a VAE belong together, and shards too.
        if part != "vae" and len({_SHARD.sub("", name) for name in kept}) > 1:
            raise InvalidRequest(
                f"{repo} has several files of the {part}: {_shown(kept)}. Choose with --variant, or name one: "
                f"daifuku download {repo}/{kept[0]}"
            )
        found += kept
    if not found:
        raise InvalidRequest(f"{repo} has none of what was asked for ({', '.join(publication.parts)})")
    if variant is not None and not any(variant.lower() in name.lower() for name in found):
        raise InvalidRequest(f"{repo} has nothing called {variant!r}; it has {_shown(weights)}")
    return found


def _in(names: Sequence[str], folder: str) -> list[str]:
    return [name for name in names if name.startswith(f"{folder}/")]


def _in_any_folder(names: Sequence[str]) -> list[str]:
    return sorted({name.split("/")[0] + "/" for name in names if "/" in name})


def _variant(name: str) -> str | None:
    """diffusion_pytorch_model.bf16-00001-of-00003.safetensors is bf16."""
    middle = _SHARD.sub("", name.rpartition("/")[2]).split(".")[1:-1]
    return middle[0] if middle else None


def _index_variant(name: str) -> str | None:
    words = [word for word in name.rpartition("/")[2].split(".")[1:] if word not in ("safetensors", "index", "json")]
    return words[0] if words else None


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
