"""The names that the package offers."""

import subprocess
import sys

import pytest

import daifuku
from daifuku.version import VERSION


@pytest.mark.parametrize("name", daifuku.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(daifuku, name) is not None
    assert name in dir(daifuku)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="pipelin"):
        daifuku.pipelin  # noqa: B018


def test_public_names_are_found_without_another_import() -> None:
    code = (
        "import sys, daifuku; daifuku.errors.InvalidRequest, daifuku.events.Step, daifuku.GenerateRequest; "
        "assert 'torch' not in sys.modules; daifuku.Pipeline; assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_version_is_the_one_the_videos_record() -> None:
    assert daifuku.__version__ == VERSION
