"""How strongly a LoRA was trained to act: what its metadata say about alpha, and whether it is a DoRA."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from daifuku.errors import CheckpointError

MAX_REPEATS = 4
"""In a pattern of a file, so that no pattern takes forever."""


@dataclass(frozen=True, kw_only=True)
class Alphas:
    """Alpha of each module, as far as metadata tell it."""

    usual: float | None = None
    by_pattern: Mapping[str, float] = field(default_factory=dict)
    """PEFT's way: the first pattern that the end of a module's name matches."""
    by_root: bool = False
    """Rank-stabilised: divided by the root of the rank (Kalajdzievski, 2023, arXiv 2312.03732)."""
    dora: bool = False
    """Every module has to have a magnitude."""

    def of(self, module: str) -> float | None:
        """None where nothing is said: the change then counts as it is."""
        for pattern, alpha in self.by_pattern.items():
            if re.fullmatch(rf"(?:.*\.)?(?:{pattern})", module):
                return alpha
        return self.usual

    def scale(self, alpha: float | None, rank: int) -> float:
        """What up @ down is multiplied by."""
        return 1.0 if alpha is None else alpha / (math.sqrt(rank) if self.by_root else rank)


def read_alphas(metadata: Mapping[str, str], peft: Mapping[str, Any]) -> Alphas:
    """From the metadata of a file and PEFT's configuration beside it, if there is one. Raises CheckpointError."""
    try:
        if peft:
            return _of_peft(peft)
        if "lora_adapter_metadata" in metadata:
            packed = _object(metadata["lora_adapter_metadata"])
            # diffusers keeps the configuration of each network in one object.
            prefix = "transformer."
            own = {key.removeprefix(prefix): value for key, value in packed.items() if key.startswith(prefix)}
            return _of_peft(own or packed)
        if "kwargs" in metadata:
            return _of_original(_object(metadata["kwargs"]))
    except (ValueError, TypeError, AttributeError, RecursionError, re.error) as error:
        raise CheckpointError(f"its metadata about ranks and alphas cannot be read ({error})") from error
    return Alphas()


def number(value: object) -> float:
    """Raises ValueError for what is no finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{str(value)[:80]!r} is no number")
    return float(value)


def _of_peft(config: Mapping[str, Any]) -> Alphas:
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        raise ValueError(f"it is {str(kind)[:80]!r}, no LoRA")
    if config.get("lora_bias"):
        raise ValueError("it is a LoRA with biases, which cannot be used")
    patterns = {str(key): number(value) for key, value in (config.get("alpha_pattern") or {}).items()}
    for pattern in patterns:
        if sum(map(pattern.count, "*+{")) > MAX_REPEATS or re.search(r"\)[*+{]", pattern):
            raise ValueError(f"the pattern {pattern[:80]!r} is too intricate")
        re.compile(pattern)
    alpha = config.get("lora_alpha")
    return Alphas(
        usual=None if alpha is None else number(alpha),
        by_pattern=patterns,
        by_root=bool(config.get("use_rslora")),
        dora=bool(config.get("use_dora")),
    )


def _of_original(config: Mapping[str, Any]) -> Alphas:
    groups = {"qkv_proj_lora_alpha": r"qkv_[xy]", "out_proj_lora_alpha": r"proj_[xy]"}
    given = {pattern: config.get(key) for key, pattern in groups.items()}
    return Alphas(by_pattern={pattern: number(value) for pattern, value in given.items() if value is not None})


def _object(text: str) -> Mapping[str, Any]:
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError("no JSON object")
    return found
