"""The figures of docs/models.md are those that the package `gguf` gives."""

import re
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize

PAGE = Path(__file__).parents[3] / "docs" / "models.md"
ROWS = re.findall(r"^\| (Q\d_\d) \| ([\d.]+) % \| ([\d.]+) % \|$", PAGE.read_text(), re.MULTILINE)


def test_the_page_has_a_row_for_each_type_that_is_written() -> None:
    assert [name for name, _, _ in ROWS] == ["Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0"]


@pytest.mark.parametrize(("name", "largest", "whole"), ROWS)
def test_errors_of_quantised_blocks_are_those_of_the_page(name: str, largest: str, whole: str) -> None:
    weight = np.random.default_rng(0).standard_normal((512, 2048), dtype=np.float32)
    kind = GGMLQuantizationType[name]
    wrong = np.abs(dequantize(quantize(weight, kind), kind) - weight).reshape(-1, 32)
    beside = wrong.max(axis=1) / np.abs(weight).reshape(-1, 32).max(axis=1)
    assert 100 * np.linalg.norm(wrong) / np.linalg.norm(weight) == pytest.approx(float(whole), rel=0.03)
    assert 100 * beside.max() == pytest.approx(float(largest), rel=0.03)
