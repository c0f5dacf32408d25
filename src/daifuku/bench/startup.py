"""Python from its start to the end of an import."""

import sys
from collections.abc import Sequence
from pathlib import Path


def python(statement: str, folder: Path) -> Sequence[str]:
    """A new interpreter that runs one statement."""
    return [sys.executable, "-c", statement]


def help_page(folder: Path) -> Sequence[str]:
    """`daifuku --help`."""
    return [sys.executable, "-m", "daifuku", "--help"]
