"""Our layers are as exact as those of torchao, within a tenth: it knows the same formats."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from daifuku import registry
from daifuku.config import QUANTISERS
from daifuku.runtime.quantiser import Quantiser

torchao: Any = pytest.importorskip("torchao.quantization")

CONFIGS = {
    "int8": lambda: torchao.Int8WeightOnlyConfig(set_inductor_config=False),
    "int8_dynamic": lambda: torchao.Int8DynamicActivationInt8WeightConfig(set_inductor_config=False),
    "fp8_storage": lambda: torchao.Float8WeightOnlyConfig(set_inductor_config=False),
    "fp8_dynamic": lambda: torchao.Float8DynamicActivationFloat8WeightConfig(
        granularity=torchao.PerRow(), set_inductor_config=False
    ),
}


def relative(found: Tensor, exact: Tensor) -> float:
    return float((found.float() - exact).norm() / exact.norm())


@pytest.mark.parametrize("name", CONFIGS)
@torch.inference_mode()
def test_the_error_is_that_of_torchao(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # torchao wants a GPU for its fp8 products, though PyTorch multiplies fp8 on a CPU as well.
    monkeypatch.setattr(torchao.quant_api, "_check_hardware_support", lambda _: None)
    torch.manual_seed(0)
    layer = nn.Linear(512, 256, dtype=torch.bfloat16).requires_grad_(False)
    tokens = torch.randn(64, 512, dtype=torch.bfloat16)
    exact = layer.float()(tokens.float())
    layer.to(torch.bfloat16)
    ours = registry.load(QUANTISERS, name, Quantiser).pack_layer("blocks.0.video_mlp.up", layer)(tokens)
    torchao.quantize_(layer, CONFIGS[name]())
    assert relative(ours, exact) == pytest.approx(relative(layer(tokens), exact), rel=0.1)
