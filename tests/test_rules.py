"""The rules of the house, read off the source: layers, habits, sizes. Each is shown able to fail."""

import ast
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "daifuku"

LAYERS = (
    {"errors", "config", "request", "request_schema", "values", "presets", "events", "registry", "version"},
    {"model"},
    {"text", "sample", "weights", "media", "world"},
    {"runtime"},
    {"video"},
    {"pipeline", "train", "evaluate", "bench"},
    {"__init__"},
    {"server", "studio"},
    {"cli"},
    {"__main__"},
)
"""Rooms from the lowest layer up. Rooms of one layer never import each other, but for the single files of the lowest;
the package's front door, `__init__`, lies just below the commands that come in through it."""

HEAVY = {"torch", "transformers", "diffusers", "huggingface_hub", "av", "tokenizers", "safetensors"}
"""Libraries that take long to import: `import daifuku` and `daifuku --help` do without them."""

WITHOUT_TORCH = {"media", "world"}

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_FILE_BYTES = 20 * 10**6
MAX_CPU_S = 0.5


@dataclass(frozen=True, kw_only=True)
class Source:
    """One file of the package."""

    path: str
    """Relative to the package, for example model/dit.py."""
    text: str

    @property
    def room(self) -> str:
        return self.path.split("/")[0].removesuffix(".py")

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @property
    def imports(self) -> Iterator[tuple[ast.stmt, str]]:
        """Every import, at any depth, as (statement, dotted module)."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from ((node, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                module = "." * node.level + (node.module or "")
                # `from daifuku import world` imports the room as much as `import daifuku.world` does.
                names = [f"daifuku.{alias.name}" for alias in node.names] if module == "daifuku" else [module]
                yield from ((node, name) for name in names)

    @property
    def eager_imports(self) -> Iterator[str]:
        """Modules that importing the file imports."""
        lazy = {
            id(inner)
            for node in ast.walk(self.tree)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or _is_type_checking(node)
            for inner in ast.walk(node)
        }
        return (module for node, module in self.imports if id(node) not in lazy)


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def _room_of(module: str) -> str:
    name = [*module.split("."), "__init__"][1]
    return name if any(name in rooms for rooms in LAYERS) else "__init__"


def _layer(room: str) -> int:
    return next(i for i, rooms in enumerate(LAYERS) if room in rooms)


def _functions(source: Source) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(source.tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


# The rules: each takes a file and yields what is wrong with it.


def lives_in_a_room(source: Source) -> Iterator[str]:
    if not any(source.room in rooms for rooms in LAYERS):
        yield f"no layer has a room {source.room}"


def imports_its_own_room_or_a_lower_layer(source: Source) -> Iterator[str]:
    for node, module in source.imports:
        if module.startswith("."):
            yield f"line {node.lineno}: relative import"
        elif module.split(".")[0] == "daifuku" and source.room != _room_of(module):
            ours, theirs = _layer(source.room), _layer(_room_of(module))
            if theirs > ours or (theirs == ours and ours > 0):
                yield f"line {node.lineno}: {source.room} imports {_room_of(module)}"


def lowest_layer_needs_only_the_standard_library(source: Source) -> Iterator[str]:
    if _layer(source.room) == 0:
        known = sys.stdlib_module_names | {"daifuku"}
        yield from (f"imports {module}" for _, module in source.imports if module.split(".")[0] not in known)


def media_and_world_need_no_torch(source: Source) -> Iterator[str]:
    if source.room in WITHOUT_TORCH:
        yield from (f"imports {module}" for _, module in source.imports if module.split(".")[0] == "torch")


def front_door_and_commands_import_heavy_libraries_late(source: Source) -> Iterator[str]:
    if source.room in {"__init__", "cli"}:
        for module in source.eager_imports:
            top = module.split(".")[0]
            if top in HEAVY or (top == "daifuku" and _layer(_room_of(module)) in range(1, 5)):
                yield f"imports {module} when it is imported"


def prints_only_in_commands(source: Source) -> Iterator[str]:
    if source.room != "cli":
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "print":
                yield f"line {node.lineno}: print"


def reads_no_environment_variables(source: Source) -> Iterator[str]:
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Attribute | ast.Name) and ast.unparse(node) in {"os.environ", "os.getenv", "os.putenv"}:
            yield f"line {node.lineno}: {ast.unparse(node)}"
        if isinstance(node, ast.ImportFrom) and node.module == "os":
            yield from (f"line {node.lineno}: {a.name}" for a in node.names if a.name in {"environ", "getenv"})


def has_no_bare_except(source: Source) -> Iterator[str]:
    for node in ast.walk(source.tree):
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            yield f"line {node.lineno}: bare except"


def has_no_global_variables(source: Source) -> Iterator[str]:
    yield from (f"line {node.lineno}: global" for node in ast.walk(source.tree) if isinstance(node, ast.Global))


def spells_out_its_keywords(source: Source) -> Iterator[str]:
    for function in _functions(source):
        if function.args.kwarg is not None and not function.name.startswith("_"):
            yield f"line {function.lineno}: {function.name} takes **{function.args.kwarg.arg}"


def keeps_files_short(source: Source) -> Iterator[str]:
    if (lines := source.text.count("\n")) > MAX_FILE_LINES:
        yield f"{lines} lines, more than {MAX_FILE_LINES}"


def keeps_functions_short(source: Source) -> Iterator[str]:
    for function in _functions(source):
        lines = (function.end_lineno or 0) - function.lineno + 1
        if lines > MAX_FUNCTION_LINES:
            yield f"line {function.lineno}: {function.name} has {lines} lines, more than {MAX_FUNCTION_LINES}"


def says_what_public_things_are_for(source: Source) -> Iterator[str]:
    if ast.get_docstring(source.tree) is None:
        yield "the file has no docstring"
    for node in source.tree.body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        if ast.get_docstring(node) is None:
            yield f"line {node.lineno}: {node.name} has no docstring"


BROKEN: dict[Callable[[Source], Iterator[str]], tuple[str, str]] = {
    lives_in_a_room: ("attic/box.py", ""),
    imports_its_own_room_or_a_lower_layer: (
        "text/encoder.py",
        "def f():\n    from daifuku.weights.load import load_dit",
    ),
    lowest_layer_needs_only_the_standard_library: ("config.py", "import numpy"),
    media_and_world_need_no_torch: ("world/scene.py", "def f():\n    import torch"),
    front_door_and_commands_import_heavy_libraries_late: ("cli/main.py", "from torch import nn"),
    prints_only_in_commands: ("model/dit.py", "print('here')"),
    reads_no_environment_variables: ("runtime/build.py", "import os\nos.environ['A'] = 'b'"),
    has_no_bare_except: ("media/read.py", "try:\n    1\nexcept:\n    2"),
    has_no_global_variables: ("sample/noise.py", "def f():\n    global cache"),
    spells_out_its_keywords: ("pipeline.py", "def generate(prompt, **rest): ..."),
    keeps_files_short: ("request.py", "\n" * (MAX_FILE_LINES + 1)),
    keeps_functions_short: ("model/dit.py", "def f():\n" + "    1\n" * MAX_FUNCTION_LINES),
    says_what_public_things_are_for: ("errors.py", "'''Errors.'''\n\ndef f(): ..."),
}
"""Every rule, with a file that breaks it."""

TIDY = Source(
    path="cli/generate.py",
    text=(
        "'''A command.'''\nimport os\nimport daifuku.request\nfrom daifuku import errors\n"
        "def run(path: str) -> None:\n    '''Runs.'''\n    import torch\n    from daifuku.pipeline import Pipeline\n"
        "    print(os.path, torch, Pipeline)\n"
    ),
)

SOURCES = [
    Source(path=path.relative_to(PACKAGE).as_posix(), text=path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))
]

by_name = pytest.mark.parametrize("rule", BROKEN, ids=lambda rule: rule.__name__)


@by_name
def test_every_file_keeps_the_rule(rule: Callable[[Source], Iterator[str]]) -> None:
    assert SOURCES
    assert [f"{source.path}: {wrong}" for source in SOURCES for wrong in rule(source)] == []


@by_name
def test_the_rule_can_fail(rule: Callable[[Source], Iterator[str]]) -> None:
    path, text = BROKEN[rule]
    assert len(list(rule(Source(path=path, text=text)))) == 1


@by_name
def test_the_rule_lets_a_tidy_file_pass(rule: Callable[[Source], Iterator[str]]) -> None:
    assert list(rule(TIDY)) == []


@pytest.mark.parametrize(
    "path, line",
    [
        ("train/loop.py", "from daifuku.evaluate.world import measure"),
        ("train/loop.py", "import daifuku.pipeline"),
        ("world/scene.py", "from daifuku import media"),
        ("model/dit.py", "from daifuku import load"),
        ("sample/noise.py", "from .guidance import guided"),
    ],
)
def test_an_import_sideways_upwards_or_relative_is_found(path: str, line: str) -> None:
    assert len(list(imports_its_own_room_or_a_lower_layer(Source(path=path, text=line)))) == 1


def oversized(root: Path) -> list[str]:
    """Tracked files that are too large for a clone to stay quick."""
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=True).stdout
    paths = [root / name for name in listing.split("\0") if name]
    return [str(path) for path in paths if path.is_file() and path.stat().st_size > MAX_FILE_BYTES]


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="only a clone knows which files are tracked")
def test_no_tracked_file_is_too_large() -> None:
    assert oversized(ROOT) == []


def test_a_tracked_file_that_is_too_large_is_found(tmp_path: Path) -> None:
    with open(tmp_path / "weights.bin", "wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    (tmp_path / "small.txt").write_text("small")
    for command in (["init", "--quiet"], ["add", "--intent-to-add", "."]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    assert oversized(tmp_path) == [str(tmp_path / "weights.bin")]


def cpu_seconds(*arguments: str) -> float:
    """Processor time of a Python process: unlike the clock, it does not depend on what else runs. The best of three."""
    times = []
    for _ in range(3):
        process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        times.append(usage.ru_utime + usage.ru_stime)
    return min(times)


def test_importing_the_package_is_quick_and_leaves_heavy_libraries_alone() -> None:
    check = (
        f"import daifuku, daifuku.cli.main, sys; assert not {HEAVY} & sys.modules.keys(), {HEAVY} & sys.modules.keys()"
    )
    assert cpu_seconds("-c", check) < MAX_CPU_S


def test_help_is_quick() -> None:
    assert cpu_seconds("-c", "from daifuku.cli.main import main; main()", "--help") < MAX_CPU_S
