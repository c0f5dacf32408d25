"""What an operator counts as."""

import pytest
import torch

from daifuku.bench.kinds import KINDS, NO_OPERATOR, REST, by_kind, kind_of, profiled


@pytest.mark.parametrize(
    "kind, operators",
    [
        ("matrix products", "aten::mm aten::addmm aten::bmm aten::baddbmm aten::linear mkldnn::_linear_pointwise"),
        ("attention", "aten::_scaled_dot_product_flash_attention_for_cpu aten::_efficient_attention_forward"),
        ("convolutions", "aten::mkldnn_convolution aten::cudnn_convolution aten::_slow_conv2d_forward aten::conv3d"),
        ("copies", "aten::copy_ aten::cat aten::contiguous aten::clone aten::to aten::_to_copy aten::constant_pad_nd"),
        (REST, "aten::native_group_norm aten::silu_ aten::sum aten::linalg_vector_norm aten::addcmul aten::empty"),
        (REST, "triton_poi_fused_cat_convolution_0 graph_0_cpp_fused__to_copy_cat_2 Torch-Compiled~Region:~0/0"),
    ],
)
def test_an_operator_is_of_the_kind_that_its_name_says(kind: str, operators: str):
    for operator in operators.split():
        assert kind_of(operator.replace("~", " ")) == kind, operator


def test_the_kinds_are_the_whole_run():
    found = by_kind({"aten::mm": 2.0, "aten::bmm": 1.0, "aten::cat": 0.5, "aten::silu": 0.25}, 5.0)
    assert found.kinds_s == {
        "matrix products": 3.0, "attention": 0.0, "convolutions": 0.0, "copies": 0.5, REST: 0.25, NO_OPERATOR: 1.25,
    }  # fmt: skip
    assert found.total_s == 5.0
    assert list(found.operators_s) == ["aten::mm", "aten::bmm", "aten::cat", "aten::silu"]


def test_only_the_longest_operators_are_named():
    assert list(by_kind({f"aten::op{i}": float(i) for i in range(20)}, 200.0).operators_s)[::9] == [
        "aten::op19",
        "aten::op10",
    ]


def test_a_run_is_watched():
    matrix = torch.ones(64, 64)
    found = profiled(lambda: torch.cat([matrix @ matrix, matrix]))
    assert found.kinds_s["matrix products"] > 0 and found.kinds_s["copies"] > 0
    assert found.kinds_s["attention"] == found.kinds_s["convolutions"] == 0
    assert found.kinds_s.keys() == {*KINDS, REST, NO_OPERATOR}
