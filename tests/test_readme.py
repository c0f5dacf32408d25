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


def run(page: str, folder: Path) -> None:
    """Runs a page in a folder that has the examples: each shell block, then all its Python as one program."""
    (folder / "examples").symlink_to(ROOT / "examples")
    shown = [block for block in blocks(page) if block.runs]
    commands = [["bash", "-euo", "pipefail", "-c", block.code] for block in shown if block.language == "bash"]
    if program := "\n".join(block.code for block in shown if block.language == "python"):
        commands.append([sys.executable, "-c", program])
    for command in commands:
        execute(command, folder)


def execute(command: list[str], folder: Path) -> None:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(command, cwd=folder, env=os.environ | {"PATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, f"{command[-1]}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("page", PAGES)
def test_the_blocks_of_the_page_run(page: str, tmp_path: Path) -> None:
    run((ROOT / page).read_text(), tmp_path)


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_example_runs(example: str, tmp_path: Path) -> None:
    execute([sys.executable, str(ROOT / example)], tmp_path)


@pytest.mark.parametrize("page", PAGES)
def test_every_link_of_the_page_leads_somewhere(page: str) -> None:
    links = LINK.findall((ROOT / page).read_text())
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []


def test_the_readme_shows_both_ways_in() -> None:
    shown = {block.language for block in blocks((ROOT / "README.md").read_text()) if block.runs}
    assert shown == {"bash", "python"}


@pytest.mark.parametrize("block", ["```bash\ntrue\nfalse\ntrue\n```\n", "```python\nx = 1\n```\n\n```python\ny\n```\n"])
def test_a_block_that_fails_is_found(block: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        run(block, tmp_path)


def test_blocks_of_a_page_share_their_names_and_a_no_run_block_is_passed_over(tmp_path: Path) -> None:
    run("```python\nx = 1\n```\n\n```python no-run\n1 / 0\n```\n\n```python\nassert x == 1\n```\n", tmp_path)
