"""Writes the table of keys into docs/training.md, from the configuration's own fields: python docs/training.py"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from daifuku.train.config import TrainConfig, sections_of
from daifuku.train.sections import KindSection, LoraSection

PAGE = Path(__file__).with_suffix(".md")
TABLE = re.compile(r"(<!-- keys -->\n).*?(<!-- /keys -->)", re.DOTALL)


def key_table() -> str:
    """Every key, its default and what it is."""
    rows = "".join(f"| `{key}` | {default} | {about} |\n" for key, default, about in _rows(TrainConfig, ""))
    return f"| key | default | what it is |\n| --- | --- | --- |\n{rows}"


def with_table(page: str) -> str:
    """The page with that table between its marks."""
    return TABLE.sub(lambda found: found[1] + key_table() + found[2], page)


def _rows(section: type[BaseModel], prefix: str) -> Iterator[tuple[str, str, str]]:
    for name, field in section.model_fields.items():
        inner = sections_of(field.annotation)
        if inner == [LoraSection]:
            yield from _rows(KindSection, f"{prefix}{name}.KIND.")
            own = {key: field for key, field in LoraSection.model_fields.items() if not sections_of(field.annotation)}
            for key, field in own.items():
                yield f"{prefix}{name}.{key}", _default(field), field.description or ""
        elif inner:
            many = "tuple" in str(field.annotation)
            yield from _rows(inner[0], f"{prefix}{name}{'[]' if many else ''}.")
        else:
            yield f"{prefix}{name}", _default(field), " ".join((field.description or "").split())


def _default(field: FieldInfo) -> str:
    value: Any = field.default
    if field.is_required():
        return "needed"
    if value is None:
        return ""
    return f"`{list(value) if isinstance(value, tuple) else value}`".replace("'", '"')


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text()))
