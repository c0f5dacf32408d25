"""Checks every shape and type of the package while tests run; fixtures that more than one folder of tests needs."""

import json
import lzma
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from beartype.claw import beartype_package
from jaxtyping import install_import_hook
from safetensors.torch import load, load_file
from torch import Tensor

DATA = Path(__file__).parent / "data"
SOURCE = Path(__file__).parents[1] / "src"
ALIAS = re.compile(r"^(\w+) = .*\w\[(?:Tensor|np\.ndarray), ", re.MULTILINE)
IMPORTED = re.compile(r"^from (daifuku[\w.]*) import (\([^)]*\)|.*)$", re.MULTILINE)


def modules_with_shapes() -> list[str]:
    """Modules that import jaxtyping, or from another module a name that stands for a shape.

    And those that import a type for pyright alone, which only jaxtyping lets pass.
    """
    paths = {path: path.relative_to(SOURCE).with_suffix("").parts for path in SOURCE.rglob("*.py")}
    texts = {".".join(parts): path.read_text() for path, parts in paths.items()}
    aliases = {(module, name) for module, text in texts.items() for name in ALIAS.findall(text)}

    def chosen(text: str) -> bool:
        names = ((module, name) for module, line in IMPORTED.findall(text) for name in re.findall(r"\w+", line))
        return "from jaxtyping import" in text or "TYPE_CHECKING" in text or not aliases.isdisjoint(names)

    return [module for module, text in texts.items() if chosen(text)]


# Before the first import of the package, so that no module escapes. Shapes are checked only where there are any: that
# takes many times as long as checking types does.
install_import_hook(modules_with_shapes(), "beartype.beartype")
beartype_package("daifuku")


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
