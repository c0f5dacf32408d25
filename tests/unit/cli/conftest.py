"""A model folder that runs in a blink, and the command line run inside the test process."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from daifuku.cli.main import main
from daifuku.config import MOCHI_STATS, DecoderConfig, DiTConfig, EncoderConfig
from daifuku.model.dit import AsymmDiT
from daifuku.model.vae.autoencoder import AsymmVAE
from daifuku.model.vae.decoder import Decoder
from daifuku.model.vae.encoder import Encoder
from daifuku.weights.save import save_dit, save_vae, write_defaults, write_model_index

DEFAULTS = {"height": 16, "width": 32, "num_frames": 7, "num_inference_steps": 3, "guidance_scale": 2.0, "fps": 20}
WORDS = ("<pad>", "</s>", "<unk>", "a", "small", "red", "ball", "bouncing")


def write_model(folder: Path, seed: int) -> Path:
    """A random model in the diffusers layout."""
    torch.manual_seed(seed)
    dit = DiTConfig(
        num_blocks=2, num_heads=2, head_dim=16, text_width=24, video_mlp_width=85, text_mlp_width=64,
        text_features=16, time_features=16,
    )  # fmt: skip
    sizes = (32, 32, 32, 32)
    encoder = Encoder(EncoderConfig(channels=sizes, num_blocks=(1, 1, 1, 1, 1)))
    decoder = Decoder(DecoderConfig(channels=sizes, num_blocks=(1, 1, 1, 1, 1)))
    save_dit(AsymmDiT(dit), folder)
    save_vae(AsymmVAE(encoder, decoder, MOCHI_STATS), folder)
    write_model_index(folder, zero_empty=True)
    write_defaults(folder, DEFAULTS)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=256
    ).save_pretrained(folder / "tokenizer")
    config = T5Config(vocab_size=len(WORDS), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    T5EncoderModel(config).save_pretrained(folder / "text_encoder")
    return folder


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), seed=0)


@pytest.fixture(scope="session")
def other_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("other"), seed=1)


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def daifuku(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Run]:
    """`daifuku("info", "--json")` runs the command in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Run:
        monkeypatch.setattr(sys, "argv", ["daifuku", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        captured = capsys.readouterr()
        return Run(code=int(end.value.code or 0), out=captured.out, err=captured.err)

    return run
