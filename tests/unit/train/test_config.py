"""Configurations: what is wrong is named with its key and the nearest thing that works."""

import runpy
import tomllib
from pathlib import Path
from typing import Any

import pytest

from daifuku.errors import InvalidRequest
from daifuku.train.config import parse_config, read_config

ROOT = Path(__file__).parents[3]

WHOLE: dict[str, Any] = {"method": "lora", "output": "out", "data": [{"folder": "data"}]}


def test_what_is_left_out_has_a_default() -> None:
    config = parse_config(WHOLE)
    assert config.model.name == "built-in"
    assert [name for name, kind in config.lora.kinds.items() if kind.rank] == [
        "video_qkv",
        "video_out",
        "text_qkv",
        "text_out",
    ]


@pytest.mark.parametrize(
    "change, words",
    [
        ({"optimiser": {"lrr": 1e-3}}, "there is no optimiser.lrr: try lr"),
        ({"metod": "lora"}, "there is no metod: try method"),
        ({"data": [{"folder": "a", "wieght": 2}]}, "there is no data.0.wieght: try weight"),
        ({"method": "qlora"}, "method: input should be 'lora', 'full', 'scratch' or 'vae' (and not 'qlora')"),
        ({"batch": {"size": 0}}, "batch.size: input should be greater than or equal to 1 (and not 0)"),
        ({"data": []}, "data: "),
        ({"compute": {"kernel": "spda"}}, "kernel='spda' is unknown"),
        ({"compute": {"kernel": "spda"}}, "Try 'sdpa'"),
        ({"compute": {"quantise": "int9"}}, "quantise='int9' is unknown"),
        (
            {"lora": {kind: {"rank": 0} for kind in ("video_qkv", "video_out", "text_qkv", "text_out")}},
            "every rank is 0",
        ),
        ({"method": "scratch"}, "the table [scratch] goes with"),
        ({"method": "full", "lora": {}}, "the table [lora] goes with"),
        ({"method": "full", "compute": {"quantise": "int8"}}, "compute.quantise is for the frozen weights"),
        ({"method": "vae", "vae": {"num_frames": 12}}, "num_frames is 6k+1: try 13"),
        ({"batch": {"sizes": {"big": 2}}}, "batch.sizes.big"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        parse_config(WHOLE | change)
    assert words in str(error.value)


def test_what_is_missing_is_named() -> None:
    with pytest.raises(InvalidRequest, match="output: field required"):
        parse_config({"method": "lora", "data": [{"folder": "data"}]})


@pytest.mark.parametrize("content", [None, "method = lora", "\xff"])
def test_a_file_that_is_no_configuration_is_refused(content: str | None, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    if content is not None:
        path.write_bytes(content.encode("latin-1"))
    with pytest.raises(InvalidRequest, match=r"config\.toml"):
        read_config(path)


def test_where_a_run_goes_and_how_it_is_watched_decide_nothing() -> None:
    before = parse_config(WHOLE).conditions()
    watched = {"output": "elsewhere", "watch": {"tensorboard": False}, "checkpoints": {"every": 7}}
    assert parse_config(WHOLE | watched).conditions() == before
    changed = parse_config(WHOLE | {"optimiser": {"lr": 1e-3}}).conditions()
    assert {key for key in before if before[key] != changed[key]} == {"optimiser.lr"}


def test_the_page_lists_every_key_as_the_fields_say() -> None:
    script = runpy.run_path(str(ROOT / "docs" / "training.py"))
    page = (ROOT / "docs" / "training.md").read_text()
    assert script["with_table"](page) == page, "run docs/training.py"
    rows = script["key_table"]().splitlines()[2:]
    assert len(rows) > 40 and all(row.split("|")[3].strip() for row in rows), "every key says what it is"


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.toml")), ids=lambda path: path.name)
def test_the_example_is_a_configuration(path: Path) -> None:
    assert read_config(path).conditions()
    assert tomllib.loads(path.read_text())["output"].startswith("runs/")
