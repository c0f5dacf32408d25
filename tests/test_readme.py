"""What the pages and examples show a newcomer works as it stands there, on the built-in model."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted(path.relative_to(ROOT).as_posix() for folder in (".", "docs") for path in (ROOT / folder).glob("*.md"))
EXAMPLES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "examples").glob("*.py"))
LANGUAGES = {"", "bash", "python"}

FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced code block."""

    language: str
    code: str
    runs: bool
    """False where the fence says `no-run`."""


def blocks(page: str) -> Iterator[Block]:
    for fence, code in FENCE.findall(page):
        language, *attributes = fence.split() or [""]
        assert language in LANGUAGES and set(attributes) <= {"no-run"}, f"unknown fence: {fence}"
        yield Block(language=language, code=code, runs=language != "" and not attributes)


def run(page: str, language: str, folder: Path) -> None:
    """Runs a page's blocks of one language in a folder that has the examples; all its Python is one program."""
    (folder / "examples").symlink_to(ROOT / "examples")
    shown = [block.code for block in blocks(page) if block.runs and block.language == language]
    if language == "bash":
        for code in shown:
            execute(["bash", "-euo", "pipefail", "-c", code], folder)
    else:
        execute([sys.executable, "-c", "\n".join(shown)], folder)


def execute(command: list[str], folder: Path) -> None:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    # Tests run side by side: two threads each would only wait for each other.
    env = os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{command[-1]}\n{done.stdout}\n{done.stderr}"


SHOWN = sorted({(page, b.language) for page in PAGES for b in blocks((ROOT / page).read_text()) if b.runs})
"""Pages that have something to run; those in docs/ start servers and prepare data, and take their time."""


@pytest.mark.parametrize(
    "page, language",
    [pytest.param(*each, marks=[pytest.mark.slow] * each[0].startswith("docs/")) for each in SHOWN],
)
def test_the_blocks_of_the_page_run(page: str, language: str, tmp_path: Path) -> None:
    run((ROOT / page).read_text(), language, tmp_path)


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_example_runs(example: str, tmp_path: Path) -> None:
    execute([sys.executable, str(ROOT / example)], tmp_path)


@pytest.mark.parametrize("page", PAGES)
def test_every_link_of_the_page_leads_somewhere(page: str) -> None:
    links = LINK.findall((ROOT / page).read_text())
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []


def test_the_readme_shows_both_ways_in() -> None:
    assert {("README.md", "bash"), ("README.md", "python")} <= set(SHOWN)


@pytest.mark.parametrize(
    "page, language",
    [("```bash\ntrue\nfalse\ntrue\n```\n", "bash"), ("```python\nx = 1\n```\n\n```python\ny\n```\n", "python")],
)
def test_a_block_that_fails_is_found(page: str, language: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        run(page, language, tmp_path)


def test_blocks_of_a_page_share_their_names_and_a_no_run_block_is_passed_over(tmp_path: Path) -> None:
    page = "```python\nx = 1\n```\n\n```python no-run\n1 / 0\n```\n\n```python\nassert x == 1\n```\n"
    run(page, "python", tmp_path)
