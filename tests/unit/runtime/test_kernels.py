"""Putting attention kernels into a transformer, and choosing the fastest by measuring."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from daifuku.config import DiTConfig
from daifuku.model.attention import Lengths, matmul, sdpa
from daifuku.model.dit import AsymmDiT
from daifuku.runtime import kernels, measured
from daifuku.runtime.kernels import Attention, AttentionShape, each_alone, fastest, set_kernel

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SHAPE = AttentionShape(num_heads=2, num_tokens=40, head_dim=8, dtype=torch.float32, device=CPU)

Play = Callable[..., dict[str, int]]


def plugin(name: str, **rest: Any) -> Attention:
    return Attention(**{"name": name, "help": "For tests.", "kernel": sdpa, "devices": ("cpu",)} | rest)


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Play:
    """Kernels that take as many milliseconds as is said, on a clock of their own; gives how often each was called."""

    def put(*plugins: Attention, **milliseconds: float) -> dict[str, int]:
        calls = dict.fromkeys((each.name for each in plugins), 0)
        now = 0.0

        def played(name: str) -> Callable[[Tensor, Tensor, Tensor, Lengths], Tensor]:
            def kernel(q: Tensor, k: Tensor, v: Tensor, lengths: Lengths) -> Tensor:
                nonlocal now
                calls[name] += 1
                if name not in milliseconds:
                    raise RuntimeError("no kernel image is available for execution on the device")
                now += milliseconds[name] / 1000
                return v

            return kernel

        fakes = {each.name: replace(each, kernel=played(each.name)) for each in plugins}
        monkeypatch.setattr(kernels, "load_all", lambda package, kind: fakes)
        monkeypatch.setattr(measured, "perf_counter", lambda: now)
        return calls

    return put


def test_the_fastest_kernel_is_measured_once_and_remembered(play: Play, tmp_path: Path) -> None:
    calls = play(plugin("slow"), plugin("quick"), slow=9, quick=2)
    assert fastest(SHAPE, tmp_path / "new").name == "quick"
    measured = dict(calls)
    assert measured["slow"] > 1
    assert fastest(SHAPE, tmp_path / "new").name == "quick"
    assert calls == measured


def test_each_shape_is_measured_for_itself_but_similar_lengths_share(play: Play, tmp_path: Path) -> None:
    calls = play(plugin("only"), only=1)
    fastest(SHAPE, tmp_path)
    once = calls["only"]
    fastest(replace(SHAPE, num_tokens=64), tmp_path)
    assert calls["only"] == once
    for change in ({"num_tokens": 65}, {"num_heads": 4}, {"head_dim": 16}, {"dtype": torch.bfloat16}):
        before = calls["only"]
        fastest(replace(SHAPE, **change), tmp_path)
        assert calls["only"] == before + once


@pytest.mark.parametrize("damaged", ["", "{", "[]", '{"a": 1}', "\x00"])
def test_a_damaged_memory_is_ignored_and_rewritten(play: Play, tmp_path: Path, damaged: str) -> None:
    play(plugin("slow"), plugin("quick"), slow=9, quick=2)
    (tmp_path / measured.MEMORY_FILE).write_text(damaged)
    assert fastest(SHAPE, tmp_path).name == "quick"
    assert any(entry == {"slow": 0.009, "quick": 0.002} for entry in rounded(tmp_path))


def rounded(folder: Path) -> list[dict[str, float]]:
    memory = json.loads((folder / measured.MEMORY_FILE).read_text())
    return [{k: round(v, 6) for k, v in entry.items()} for entry in memory.values() if isinstance(entry, dict)]


def test_where_nothing_can_be_written_the_choice_is_still_made(play: Play, tmp_path: Path) -> None:
    play(plugin("slow"), plugin("quick"), slow=9, quick=2)
    (tmp_path / "file").touch()
    assert fastest(SHAPE, tmp_path / "file").name == "quick"


def test_a_kernel_that_was_not_there_when_it_was_measured_gets_its_chance(play: Play, tmp_path: Path) -> None:
    play(plugin("slow"), slow=9)
    fastest(SHAPE, tmp_path)
    play(plugin("slow"), plugin("installed"), slow=9, installed=1)
    assert fastest(SHAPE, tmp_path).name == "installed"


def test_what_is_approximate_or_elsewhere_or_slow_to_start_or_too_large_is_not_chosen(
    play: Play, tmp_path: Path
) -> None:
    others = {
        "rough": plugin("rough", exact=False),
        "elsewhere": plugin("elsewhere", devices=("cuda",)),
        "missing": plugin("missing", available=lambda: "it is not installed"),
        "half": plugin("half", half_only=("cpu",)),
        "compiled": plugin("compiled", compiles=True),
        "large": plugin("large", stores_scores=True),
    }
    play(plugin("plain"), *others.values(), plain=9, **dict.fromkeys(others, 1))
    many = replace(SHAPE, num_heads=24, num_tokens=2000)
    assert fastest(many, tmp_path).name == "plain"
    assert fastest(SHAPE, tmp_path).name == "large"


def test_a_kernel_that_fails_when_tried_is_passed_over(play: Play, tmp_path: Path) -> None:
    calls = play(plugin("broken"), plugin("slow"), slow=9)
    assert fastest(SHAPE, tmp_path).name == "slow"
    assert calls["broken"] == 1
    assert fastest(SHAPE, tmp_path).name == "slow"
    assert calls["broken"] == 1


def test_where_none_works_the_choice_is_left_to_pytorch(play: Play, tmp_path: Path) -> None:
    play(plugin("broken"))
    assert fastest(SHAPE, tmp_path).name == "sdpa"


def test_a_kernel_says_why_it_does_not_fit() -> None:
    assert plugin("any").unfit(CPU, torch.float32) is None
    assert plugin("any").unfit(CUDA, torch.float32) == "it runs on cpu, not on cuda"
    half = plugin("half", half_only=("cpu",))
    assert "bfloat16" in (half.unfit(CPU, torch.float32) or "") and half.unfit(CPU, torch.bfloat16) is None
    assert plugin("gone", available=lambda: "not installed").unfit(CPU, torch.float32) == "not installed"


def test_a_kernel_without_masks_sees_each_sequence_cut_to_its_length() -> None:
    q, k, v = torch.randn(3, 2, 2, 6, 8)
    seen: list[tuple[int, ...]] = []

    def kernel(q: Tensor, k: Tensor, v: Tensor, lengths: Lengths) -> Tensor:
        assert lengths is None
        seen.append(tuple(k.shape))
        return matmul(q, k, v, None)

    lengths = torch.tensor([6, 2])
    assert torch.allclose(each_alone(kernel)(q, k, v, lengths), matmul(q, k, v, lengths), atol=1e-6)
    assert seen == [(1, 2, 6, 8), (1, 2, 2, 8)]


def test_every_block_gets_the_kernel() -> None:
    config = DiTConfig(
        num_blocks=3, num_heads=2, head_dim=16, text_width=24, video_mlp_width=32, text_mlp_width=16, text_features=8,
        time_features=16,
    )  # fmt: skip
    dit = AsymmDiT(config)
    calls = 0

    def counting(q: Tensor, k: Tensor, v: Tensor, lengths: Lengths) -> Tensor:
        nonlocal calls
        calls += 1
        return sdpa(q, k, v, lengths)

    set_kernel(dit, counting)
    dit(torch.randn(1, 12, 1, 4, 4), torch.tensor([0.5]), torch.randn(1, 3, 8), torch.ones(1, 3, dtype=torch.bool))
    assert calls == 3
