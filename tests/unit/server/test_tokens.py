import json
from dataclasses import replace
from pathlib import Path

import pytest

import daifuku
from daifuku.server.tokens import counter, max_tokens
from daifuku.text.t5 import read_tokenizer
from tests.unit.server import fakes

TOKENIZER = Path(daifuku.__file__).parent / "assets" / "tiny" / "tokenizer"
PROMPTS = ("", "a small red ball", "ümläut 日本 \n emoji 🎈", "<b>{{x}}</b> ${y}", "word " * 2000)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_tokens_are_counted_as_the_model_counts_them(prompt: str) -> None:
    assert counter(TOKENIZER)(prompt) == len(read_tokenizer(TOKENIZER).encode(prompt, verbose=False))


def test_a_lone_tokenizer_file_counts_the_same() -> None:
    assert counter(TOKENIZER / "tokenizer.json")("a red ball") == counter(TOKENIZER)("a red ball")


def test_a_sentencepiece_file_counts_as_transformers_does(tmp_path: Path) -> None:
    import sentencepiece

    with open(tmp_path / "spiece.model", "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["a small red ball", "a large blue ring"] * 20),
            model_writer=file,
            vocab_size=20,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            minloglevel=2,
        )
    for prompt in PROMPTS:
        assert counter(tmp_path)(prompt) == len(read_tokenizer(tmp_path).encode(prompt, verbose=False))


def test_a_tokenizer_says_how_many_tokens_are_read(tmp_path: Path) -> None:
    assert max_tokens(TOKENIZER) == 256 == max_tokens(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 77}))
    assert max_tokens(tmp_path / "tokenizer.json") == 77


def test_the_api_counts_and_refuses_what_is_no_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fakes, "CARD", replace(fakes.CARD, tokenizer=str(TOKENIZER)))
    with fakes.house(tmp_path, loras={"style": tmp_path}) as home:
        answer = home.client.post("/v1/tokens", json={"prompt": "a red ball"})
        assert answer.json() == {"object": "tokens", "num_tokens": counter(TOKENIZER)("a red ball"), "max_tokens": 256}
        for body in ({}, {"prompt": 3}, {"prompt": "x" * 10_001}, {"prompt": "", "more": 1}):
            refused = home.client.post("/v1/tokens", json=body)
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, "prompt")
        assert home.client.get("/v1/models").json()["data"][0]["loras"] == ["style"]


def test_a_model_without_a_tokenizer_says_so(tmp_path: Path) -> None:
    with fakes.house(tmp_path) as home:
        assert home.client.post("/v1/tokens", json={"prompt": ""}).json()["error"]["code"] == "no_tokenizer"
