"""Finds the plugins of a package folder: one object per file, and the file is named like the plugin.

A plugin of kind `Solver` is the module constant `SOLVER`. Adding one means adding a file; there is no list to edit.
Words of a name, of a plugin as of a preset, are joined by "_", so that file, flag, request and record spell it alike:
`first_block.py`, `--step-cache first_block`.
"""

import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import TypeVar


def ready() -> str | None:
    """The `available` of a plugin that runs everywhere."""
    return None


@dataclass(frozen=True, kw_only=True)
class Plugin:
    """What every kind of plugin says about itself."""

    name: str
    help: str
    available: Callable[[], str | None] = ready
    """Returns None where the plugin can run, else the reason why it cannot."""


P = TypeVar("P", bound=Plugin)


def names(package: str) -> tuple[str, ...]:
    """The plugins of a package in alphabetical order, read off its file names without importing any of them."""
    spec = find_spec(package)
    assert spec is not None and spec.submodule_search_locations is not None, f"{package} is not a package"
    return tuple(sorted(module.name for module in pkgutil.iter_modules(spec.submodule_search_locations)))


def load(package: str, name: str, kind: type[P]) -> P:
    """Imports one plugin. Raises KeyError for an unknown name and TypeError for a file that breaks the convention."""
    if name not in names(package):
        raise KeyError(f"{package} has no plugin {name!r}: there are {', '.join(names(package))}")
    module, constant = f"{package}.{name}", kind.__name__.upper()
    if not name.isidentifier():
        raise TypeError(f"{module}: words of a name are joined by '_'")
    plugin = getattr(import_module(module), constant, None)
    if not isinstance(plugin, kind):
        raise TypeError(f"{module} must define {constant}, a {kind.__name__}")
    if plugin.name != name:
        raise TypeError(f"{module} calls its plugin {plugin.name!r}: a plugin is named like its file")
    if not plugin.help.strip():
        raise TypeError(f"{module} must say in `help` what it does")
    return plugin


def load_all(package: str, kind: type[P]) -> Mapping[str, P]:
    """Imports every plugin of a package, by name. Raises TypeError for a file that breaks the convention."""
    return {name: load(package, name, kind) for name in names(package)}
