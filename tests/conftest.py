"""Checks every shape and type of the package while tests run; fixtures that more than one folder of tests needs."""

import json
import lzma
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from jaxtyping import install_import_hook
from safetensors.torch import load, load_file
from torch import Tensor

# Before the first import of the package, so that no module escapes the check.
install_import_hook("daifuku", "beartype.beartype")

DATA = Path(__file__).parent / "data"


def pytest_configure() -> None:
    # What this machine once measured must not decide what a test sees.
    os.environ["HOME"] = tempfile.mkdtemp(prefix="home-of-tests-")
    # Workers share the machine, and small tensors gain nothing from more threads.
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def golden() -> Callable[[str], dict[str, Tensor]]:
    """Reference tensors by file name (see tests/data/README.md). Weights are kept packed."""

    def read(name: str) -> dict[str, Tensor]:
        packed = DATA / "golden" / f"{name}.safetensors.xz"
        if packed.exists():
            return load(lzma.decompress(packed.read_bytes()))
        return load_file(DATA / "golden" / f"{name}.safetensors")

    return read


@pytest.fixture(scope="session")
def golden_config() -> dict:
    """Sizes, sampling settings and schedules of the reference vectors."""
    return json.loads((DATA / "golden" / "config.json").read_text())


@pytest.fixture(scope="session")
def golden_folder(golden: Callable[[str], dict[str, Tensor]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference model as its users have it: the three files of the original layout."""
    folder = tmp_path_factory.mktemp("golden")
    for part in ("dit", "encoder", "decoder"):
        packed = DATA / "golden" / f"{part}.safetensors.xz"
        (folder / f"{part}.safetensors").write_bytes(lzma.decompress(packed.read_bytes()))
    return folder
