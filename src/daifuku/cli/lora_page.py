"""What there is to know about a LoRA file, for `daifuku info`."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NUM_TAGS = 8
"""Of the captions that a LoRA was trained on, the most frequent ones."""

MAX_CHARACTERS = 200

_ABOUT: Mapping[str, Sequence[str]] = {
    "title": ("modelspec.title", "ss_output_name"),
    "author": ("modelspec.author",),
    "description": ("modelspec.description", "ss_training_comment"),
    "usage": ("modelspec.usage_hint",),
    "license": ("modelspec.license",),
    "date": ("modelspec.date",),
    "base model": ("base_model_name_or_path", "ss_base_model_version", "ss_sd_model_name", "modelspec.architecture"),
}
"""Where tools note what a person would like to know."""


@dataclass(frozen=True, kw_only=True)
class LoraDescription:
    """What there is to know about a LoRA."""

    file: str
    fingerprint: str
    layout: str
    modules: Mapping[str, int]
    """Layers that it changes, by their kind."""
    ranks: Mapping[str, int]
    """Modules of the file by their rank."""
    alphas: Mapping[str, int]
    num_doras: int
    """Modules of the file that have magnitudes, as those of a DoRA do."""
    dtypes: Sequence[str]
    trigger_words: Sequence[str]
    about: Mapping[str, str]
    metadata: Mapping[str, str]


def describe_lora(path: str) -> LoraDescription:
    """Raises what `read_lora` raises, so that a LoRA that is described can be used."""
    from daifuku.weights.lora import read_lora

    lora = read_lora(path)
    told = {key: [lora.metadata[name] for name in names if name in lora.metadata] for key, names in _ABOUT.items()}
    return LoraDescription(
        file=str(lora.path),
        fingerprint=lora.fingerprint,
        layout=lora.layout,
        modules=dict(Counter(re.sub(r"^blocks\.\d+\.", "", layer) for layer in lora.deltas)),
        ranks={str(rank): count for rank, count in sorted(lora.ranks.items())},
        alphas={"not told" if alpha is None else f"{alpha:g}": count for alpha, count in lora.alphas.items()},
        num_doras=lora.num_doras,
        dtypes=lora.dtypes,
        trigger_words=trigger_words(lora.metadata),
        about={key: values[0] for key, values in told.items() if values},
        metadata=lora.metadata,
    )


def trigger_words(metadata: Mapping[str, str]) -> list[str]:
    """What a prompt should say for a LoRA to show: what its maker says, else the words it was trained on most."""
    told = [value for key, value in metadata.items() if "trigger" in key.lower() and value.strip()]
    if told:
        return list(dict.fromkeys(told))
    try:
        found: Any = json.loads(metadata.get("ss_tag_frequency", "{}"))
        counts: Counter[str] = Counter()
        for tags in found.values():
            counts.update({str(tag).strip(): int(count) for tag, count in tags.items()})
    except (ValueError, TypeError, AttributeError, RecursionError):
        return []
    return [tag for tag, _ in counts.most_common(NUM_TAGS)]


def lora_page(found: LoraDescription) -> str:
    """The description for a person to read."""

    def counted(counts: Mapping[str, int]) -> str:
        return ", ".join(f"{name} ({count})" for name, count in counts.items())

    facts = {
        "layout": found.layout,
        "fingerprint": found.fingerprint,
        "rank": counted(found.ranks),
        "alpha": counted(found.alphas),
        "stored as": ", ".join(found.dtypes),
        "trigger words": "; ".join(found.trigger_words) or "none named",
        **found.about,
    }
    lines = [f"{Path(found.file).name}: a {'DoRA' if found.num_doras else 'LoRA'}", f"  {'at':<15} {found.file}"]
    lines += [f"  {name:<15} {_shown(value)}" for name, value in facts.items()]
    lines += ["", f"changes {sum(found.modules.values())} layers"]
    lines += [f"  {count:>5}  {kind}" for kind, count in found.modules.items()]
    return "\n".join(lines)


def _shown(text: str) -> str:
    """On one line, and without characters that would steer a terminal."""
    plain = "".join(letter if letter.isprintable() else " " for letter in text)
    return plain if len(plain) <= MAX_CHARACTERS else f"{plain[:MAX_CHARACTERS]}..."
