"""Plugins are found by looking into a folder."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from daifuku import registry

KIND = "from test_registry_kind import Kind\n"


@dataclass(frozen=True, kw_only=True)
class Kind(registry.Plugin):
    """A kind of plugin for these tests."""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty package `plugs` that can be imported; its files find `Kind` in `test_registry_kind`."""
    folder = tmp_path / "plugs"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "test_registry_kind", sys.modules[__name__])
    yield folder
    for name in [name for name in sys.modules if name.split(".")[0] == "plugs"]:
        del sys.modules[name]


def test_names_are_listed_without_importing_any_plugin(package: Path) -> None:
    for name in ("two", "one"):
        (package / f"{name}.py").write_text("raise RuntimeError('imported')")
    assert registry.names("plugs") == ("one", "two")


def test_a_new_file_is_a_new_plugin(package: Path) -> None:
    (package / "mine.py").write_text(KIND + "KIND = Kind(name='mine', help='Does a thing.')")
    assert registry.load("plugs", "mine", Kind).help == "Does a thing."
    assert list(registry.load_all("plugs", Kind)) == ["mine"]


def test_only_the_plugin_that_is_asked_for_is_imported(package: Path) -> None:
    (package / "mine.py").write_text(KIND + "KIND = Kind(name='mine', help='Does a thing.')")
    (package / "broken.py").write_text("raise RuntimeError('imported')")
    registry.load("plugs", "mine", Kind)


@pytest.mark.parametrize(
    "content, complaint",
    [
        ("", "must define KIND"),
        ("KIND = 3", "must define KIND"),
        (KIND + "KIND = Kind(name='other', help='Does a thing.')", "named like its file"),
        (KIND + "KIND = Kind(name='mine', help=' ')", "must say"),
    ],
)
def test_a_file_that_breaks_the_convention_is_an_error(package: Path, content: str, complaint: str) -> None:
    (package / "mine.py").write_text(content)
    with pytest.raises(TypeError, match=complaint):
        registry.load_all("plugs", Kind)


def test_words_of_a_name_are_joined_by_an_underscore(package: Path) -> None:
    for name in ("two_words", "two-words"):
        (package / f"{name}.py").write_text(KIND + f"KIND = Kind(name='{name}', help='Does a thing.')")
    assert registry.load("plugs", "two_words", Kind).name == "two_words"
    with pytest.raises(TypeError, match="joined by '_'"):
        registry.load("plugs", "two-words", Kind)


def test_an_unknown_plugin_is_an_error_that_names_those_there_are(package: Path) -> None:
    (package / "mine.py").write_text("")
    with pytest.raises(KeyError, match="there are mine"):
        registry.load("plugs", "yours", Kind)


def test_a_plugin_runs_everywhere_unless_it_says_otherwise() -> None:
    assert Kind(name="mine", help="Does a thing.").available() is None
