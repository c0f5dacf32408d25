"""What every published layout calls our tensors, and how it arranges them: one two-way table per part and layout.

A rule pairs one of our modules with the file's. `#` stands for a block number and `#+2` for that number plus two; the
trailing `.weight` or `.bias` carries over. Where the file has several modules, ours is their stack along the outputs.
The only facts a table needs beforehand are counts, because both layouts let names depend on them.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import torch
from torch import Tensor

Layout = Literal["original", "diffusers"]
Naming = Literal["original", "diffusers", "transformers", "llama.cpp"]
"""A layout of a model, or how a file names the tensors of a T5."""

Part = Literal["dit", "encoder", "decoder", "text"]

T = TypeVar("T")

_BLOCK = re.compile(r"#(?:\+\d+)?")
"""The place of a block number in a pattern."""

_NUMBER = re.compile(r"#(?:\+\d+)?|\d+")
"""A number in a pattern or in a name."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One module of ours and the modules of the file that hold it."""

    ours: str
    theirs: tuple[str, ...]
    swapped: bool = False
    """The two halves of the outputs stand in the other order in the file."""


@dataclass(frozen=True, kw_only=True)
class Stored:
    """Where a tensor of ours is in a file: these tensors stacked along axis 0, with its halves swapped or not."""

    names: tuple[str, ...]
    swapped: bool = False

    @property
    def as_it_is(self) -> bool:
        return len(self.names) == 1 and not self.swapped


class NameTable:
    """Translates names both ways."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._by_ours: _Patterns[Rule] = _Patterns()
        self._by_theirs: _Patterns[str] = _Patterns()
        for rule in rules:
            self._by_ours.add(rule.ours, rule)
            for theirs in rule.theirs:
                self._by_theirs.add(theirs, rule.ours)

    def stored(self, name: str) -> Stored:
        """Where the file keeps our tensor `name`. Raises KeyError when the layout has no place for it."""
        found = self._by_ours.find(name)
        if found is None:
            raise KeyError(name)
        rule, blocks, parameter = found
        return Stored(names=tuple(_fill(theirs, blocks) + parameter for theirs in rule.theirs), swapped=rule.swapped)

    def ours(self, name: str) -> str | None:
        """Which of our tensors the file's tensor `name` belongs to; None when it belongs to none."""
        found = self._by_theirs.find(name)
        if found is None:
            return None
        ours, blocks, parameter = found
        return _fill(ours, blocks) + parameter


class _Patterns(Generic[T]):
    """What belongs to patterns of names, found by a name."""

    def __init__(self) -> None:
        self._by_outline: dict[str, list[tuple[list[str], T]]] = {}

    def add(self, pattern: str, value: T) -> None:
        numbers = _NUMBER.findall(pattern)
        self._by_outline.setdefault(_NUMBER.sub("#", pattern), []).append((numbers, value))

    def find(self, name: str) -> tuple[T, list[int], str] | None:
        """The value of the first pattern that a name follows, the name's block numbers, and its parameter's name."""
        stem = name.removesuffix(".weight").removesuffix(".bias")
        numbers = [int(number) for number in _NUMBER.findall(stem)]
        for marks, value in self._by_outline.get(_NUMBER.sub("#", stem), ()):
            blocks = [number - _shift(mark) for mark, number in zip(marks, numbers, strict=True) if mark[0] == "#"]
            if min(blocks, default=0) >= 0 and all(
                mark[0] == "#" or int(mark) == number for mark, number in zip(marks, numbers, strict=True)
            ):
                return value, blocks, name[len(stem) :]
        return None


def _fill(pattern: str, blocks: Sequence[int]) -> str:
    """The name of that pattern with those block numbers."""
    rest = iter(blocks)
    return _BLOCK.sub(lambda mark: str(next(rest) + _shift(mark[0])), pattern)


def _shift(mark: str) -> int:
    """2 for `#+2`, 0 for `#`."""
    return int(mark[2:] or 0)


def name_table(part: Part, layout: Naming, names: Iterable[str]) -> NameTable:
    """The table for a part. `names` are all its tensors, ours or the file's: the counts are read off them."""
    names = list(names)
    if part == "text":
        return NameTable(_t5_llama() if layout == "llama.cpp" else _t5_transformers(names))
    if part == "dit":
        num_blocks = _count(names, r"(?:transformer_)?blocks\.(\d+)\.")
        return NameTable(_dit_original() if layout == "original" else _dit_diffusers(num_blocks - 1))
    if part == "decoder":
        return NameTable(_decoder_original() if layout == "original" else _decoder_diffusers())
    if layout == "diffusers":
        return NameTable(_encoder_diffusers())
    down_stages = [int(found[1]) for name in names if (found := re.match(r"layers\.(\d+)\.layers\.", name))]
    num_first = min(down_stages) - 1 if down_stages else _count(names, r"first\.(\d+)\.")
    return NameTable(_encoder_original(num_first))


PART_NAMES: Mapping[Part, str] = {
    "dit": "transformer",
    "encoder": "VAE encoder",
    "decoder": "VAE decoder",
    "text": "T5 encoder",
}
"""For people."""

_MARKS: tuple[tuple[Naming, Part, str], ...] = (
    ("original", "dit", r"blocks\.\d+\.attn\.qkv_x\."),
    ("original", "encoder", r"layers\.\d+\.layers\."),
    ("original", "decoder", r"blocks\.\d+\.(?:blocks|proj)\."),
    ("diffusers", "dit", r"transformer_blocks\.\d+\.attn1\.add_q_proj\."),
    ("diffusers", "encoder", r"encoder\.down_blocks\.\d+\.conv_in\.conv\."),
    ("diffusers", "decoder", r"decoder\.up_blocks\.\d+\.proj\."),
    ("transformers", "text", r"encoder\.block\.\d+\.layer\.\d+\.SelfAttention\."),
    ("llama.cpp", "text", r"enc\.blk\.\d+\.attn_q\."),
)

_ANYWHERE: list[tuple[Naming, Part, re.Pattern[str]]] = [
    (naming, part, re.compile(rf"((?:.+?\.)??){mark}")) for naming, part, mark in _MARKS
]


@dataclass(frozen=True, kw_only=True)
class Found:
    """A part of a model in a file: how its tensors are named, after what all their names begin with."""

    part: Part
    naming: Naming
    prefix: str


def find_parts(names: Iterable[str]) -> tuple[Found, ...]:
    """The parts of a Mochi model that tensor names belong to, whatever they begin with; empty when they are others'."""
    names = list(names)
    found: dict[Part, Found] = {}
    for naming, part, mark in _ANYWHERE:
        match = next(filter(None, map(mark.match, names)), None)
        if match is not None and part not in found:
            found[part] = Found(part=part, naming=naming, prefix=match[1])
    return tuple(found.values())


def under(names: Iterable[str], part: Found, parts: Iterable[Found]) -> dict[str, str]:
    """The names that belong to one of a file's parts, by what they are without what they begin with."""
    inside = tuple({other.prefix for other in parts if len(other.prefix) > len(part.prefix)})
    mine = [name for name in names if name.startswith(part.prefix) and not name.startswith(inside)]
    return {name.removeprefix(part.prefix): name for name in mine}


NOT_OF_AN_ENCODER = ("decoder.", "lm_head.", "dec.", "output.", "spiece_model", "logit_scale")
"""How names begin that a whole T5, or a tool that packs one, adds to its encoder's."""


def of_part(names: Iterable[str], part: Part, layout: Naming) -> list[str]:
    """The names that belong to one part: diffusers keeps both halves of a VAE together, and T5 files hold more."""
    names = list(names)
    if part == "text":
        # The embedding often stands there twice.
        twice = {"encoder.embed_tokens.weight"} if "shared.weight" in names else set[str]()
        return [name for name in names if name not in twice and not name.startswith(NOT_OF_AN_ENCODER)]
    if layout == "original" or part == "dit":
        return names
    other = "decoder." if part == "encoder" else "encoder."
    return [name for name in names if not name.startswith(other)]


def to_theirs(stored: Stored, tensor: Tensor) -> list[Tensor]:
    """Our tensor as the tensors of the file."""
    if stored.swapped:
        return [torch.cat(tensor.chunk(2)[::-1])]
    return list(tensor.chunk(len(stored.names)))


def _count(names: Iterable[str], pattern: str) -> int:
    return len({found[1] for name in names if (found := re.match(pattern, name))})


def _rules(pairs: dict[str, str]) -> list[Rule]:
    return [Rule(ours=ours, theirs=(theirs,)) for ours, theirs in pairs.items()]


def _inside(ours: str, theirs: str, rules: Iterable[Rule]) -> list[Rule]:
    """The same rules for modules inside a container on either side."""
    return [
        Rule(ours=ours + rule.ours, theirs=tuple(theirs + name for name in rule.theirs), swapped=rule.swapped)
        for rule in rules
    ]


def _dit_original() -> list[Rule]:
    block = {
        "video_modulation": "mod_x",
        "text_modulation": "mod_y",
        "attention.video_qkv": "attn.qkv_x",
        "attention.text_qkv": "attn.qkv_y",
        "attention.video_q_norm": "attn.q_norm_x",
        "attention.video_k_norm": "attn.k_norm_x",
        "attention.text_q_norm": "attn.q_norm_y",
        "attention.text_k_norm": "attn.k_norm_y",
        "attention.video_out": "attn.proj_x",
        "attention.text_out": "attn.proj_y",
        "video_mlp.up": "mlp_x.w1",
        "video_mlp.down": "mlp_x.w2",
        "text_mlp.up": "mlp_y.w1",
        "text_mlp.down": "mlp_y.w2",
    }
    around = {
        "pos_frequencies": "pos_frequencies",
        "patch_embed.proj": "x_embedder.proj",
        "time_embed.up": "t_embedder.mlp.0",
        "time_embed.down": "t_embedder.mlp.2",
        "caption_pool.key_value": "t5_y_embedder.to_kv",
        "caption_pool.query": "t5_y_embedder.to_q",
        "caption_pool.out": "t5_y_embedder.to_out",
        "text_proj": "t5_yproj",
        "final.modulation": "final_layer.mod",
        "final.linear": "final_layer.linear",
    }
    return _rules(around) + _inside("blocks.#.", "blocks.#.", _rules(block))


def _dit_diffusers(last: int) -> list[Rule]:
    """`last`: number of the last block, whose text modulation has a name of its own."""
    block = {
        "video_modulation": "norm1.linear",
        "text_modulation": "norm1_context.linear",
        "attention.video_q_norm": "attn1.norm_q",
        "attention.video_k_norm": "attn1.norm_k",
        "attention.text_q_norm": "attn1.norm_added_q",
        "attention.text_k_norm": "attn1.norm_added_k",
        "attention.video_out": "attn1.to_out.0",
        "attention.text_out": "attn1.to_add_out",
        "video_mlp.down": "ff.net.2",
        "text_mlp.down": "ff_context.net.2",
    }
    rearranged = [
        Rule(ours="attention.video_qkv", theirs=("attn1.to_q", "attn1.to_k", "attn1.to_v")),
        Rule(ours="attention.text_qkv", theirs=("attn1.add_q_proj", "attn1.add_k_proj", "attn1.add_v_proj")),
        # There the gate of a SwiGLU comes after the value.
        Rule(ours="video_mlp.up", theirs=("ff.net.0.proj",), swapped=True),
        Rule(ours="text_mlp.up", theirs=("ff_context.net.0.proj",), swapped=True),
    ]
    around = {
        "pos_frequencies": "pos_frequencies",
        "patch_embed.proj": "patch_embed.proj",
        "time_embed.up": "time_embed.timestep_embedder.linear_1",
        "time_embed.down": "time_embed.timestep_embedder.linear_2",
        "caption_pool.key_value": "time_embed.pooler.to_kv",
        "caption_pool.query": "time_embed.pooler.to_q",
        "caption_pool.out": "time_embed.pooler.to_out",
        "text_proj": "time_embed.caption_proj",
        f"blocks.{last}.text_modulation": f"transformer_blocks.{last}.norm1_context.linear_1",
        "final.linear": "proj_out",
    }
    # There the final scale comes before the shift.
    final = Rule(ours="final.modulation", theirs=("norm_out.linear",), swapped=True)
    return [*_rules(around), final, *_inside("blocks.#.", "transformer_blocks.#.", _rules(block) + rearranged)]


_RES_BLOCK_ORIGINAL = _rules(
    {
        "norm1": "stack.0",
        "conv1": "stack.2",
        "norm2": "stack.3",
        "conv2": "stack.5",
        "attention.norm": "attn_block.norm",
        "attention.qkv": "attn_block.attn.qkv",
        "attention.out": "attn_block.attn.out",
    }
)

_RES_BLOCK_DIFFUSERS = [
    *_rules(
        {
            "#.norm1": "resnets.#.norm1.norm_layer",
            "#.conv1": "resnets.#.conv1.conv",
            "#.norm2": "resnets.#.norm2.norm_layer",
            "#.conv2": "resnets.#.conv2.conv",
            "#.attention.norm": "norms.#.norm_layer",
            "#.attention.out": "attentions.#.to_out.0",
        }
    ),
    Rule(ours="#.attention.qkv", theirs=("attentions.#.to_q", "attentions.#.to_k", "attentions.#.to_v")),
]


def _decoder_original() -> list[Rule]:
    return [
        *_rules({"input": "blocks.0.0", "stages.#.proj": "blocks.#+1.proj", "output": "output_proj"}),
        *_inside("middle.#.", "blocks.0.#+1.", _RES_BLOCK_ORIGINAL),
        *_inside("stages.#.blocks.#.", "blocks.#+1.blocks.#.", _RES_BLOCK_ORIGINAL),
        *_inside("last.#.", "blocks.4.#.", _RES_BLOCK_ORIGINAL),
    ]


def _decoder_diffusers() -> list[Rule]:
    rules = [
        *_rules({"input": "conv_in", "stages.#.proj": "up_blocks.#.proj", "output": "proj_out"}),
        *_inside("middle.", "block_in.", _RES_BLOCK_DIFFUSERS),
        *_inside("stages.#.blocks.", "up_blocks.#.", _RES_BLOCK_DIFFUSERS),
        *_inside("last.", "block_out.", _RES_BLOCK_DIFFUSERS),
    ]
    return _inside("", "decoder.", rules)


def _encoder_original(num_first: int) -> list[Rule]:
    """`num_first`: residual blocks at full resolution, which everything after them is numbered from."""
    down = f"layers.#+{num_first + 1}.layers."
    rules = _rules({"input": "layers.0", "stages.#.down": down + "0", "norm": "output_norm", "output": "output_proj"})
    for block in range(num_first):
        rules += _inside(f"first.{block}.", f"layers.{block + 1}.", _RES_BLOCK_ORIGINAL)
    rules += _inside("stages.#.blocks.#.", down + "#+1.", _RES_BLOCK_ORIGINAL)
    return rules + _inside("middle.#.", f"layers.#+{num_first + 4}.", _RES_BLOCK_ORIGINAL)


def _encoder_diffusers() -> list[Rule]:
    around = {
        "input": "proj_in",
        "stages.#.down": "down_blocks.#.conv_in.conv",
        "norm": "norm_out.norm_layer",
        "output": "proj_out",
    }
    rules = [
        *_rules(around),
        *_inside("first.", "block_in.", _RES_BLOCK_DIFFUSERS),
        *_inside("stages.#.blocks.", "down_blocks.#.", _RES_BLOCK_DIFFUSERS),
        *_inside("middle.", "block_out.", _RES_BLOCK_DIFFUSERS),
    ]
    return _inside("", "encoder.", rules)


def _t5_transformers(names: Iterable[str]) -> list[Rule]:
    """The names are those of the library that runs it; `names` tell where the embedding stands."""
    attention, mlp = "encoder.block.#.layer.0.", "encoder.block.#.layer.1."
    same = [f"{attention}SelfAttention.{name}" for name in ("q", "k", "v", "o", "relative_attention_bias")]
    same += [f"{mlp}DenseReluDense.{name}" for name in ("wi", "wi_0", "wi_1", "wo")]
    same += [f"{attention}layer_norm", f"{mlp}layer_norm", "encoder.final_layer_norm"]
    embedding = "shared" if "shared.weight" in names else "encoder.embed_tokens"
    return _rules({name: name for name in same} | dict.fromkeys(("shared", "encoder.embed_tokens"), embedding))


def _t5_llama() -> list[Rule]:
    attention, mlp = "layer.0.", "layer.1."
    block = {
        f"{attention}SelfAttention.q": "attn_q",
        f"{attention}SelfAttention.k": "attn_k",
        f"{attention}SelfAttention.v": "attn_v",
        f"{attention}SelfAttention.o": "attn_o",
        f"{attention}SelfAttention.relative_attention_bias": "attn_rel_b",
        f"{attention}layer_norm": "attn_norm",
        f"{mlp}DenseReluDense.wi_0": "ffn_gate",
        f"{mlp}DenseReluDense.wi_1": "ffn_up",
        f"{mlp}DenseReluDense.wo": "ffn_down",
        f"{mlp}layer_norm": "ffn_norm",
    }
    around = dict.fromkeys(("shared", "encoder.embed_tokens"), "token_embd")
    around |= {"encoder.final_layer_norm": "enc.output_norm"}
    return _rules(around) + _inside("encoder.block.#.", "enc.blk.#.", _rules(block))
