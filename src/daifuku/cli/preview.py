"""A picture beside the clip that shows how it is coming along."""

from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from daifuku.cli.console import say
from daifuku.errors import UnwritableOutput
from daifuku.events import Event, Preview

if TYPE_CHECKING:
    import numpy as np

ENDING = ".preview.png"
"""What the name of a clip's preview ends in, in place of the clip's suffix."""

MAX_COLUMNS = 8
CELL = 4
"""Pixels for each latent cell, along either side."""


class PreviewPicture:
    """Shows every Preview of a run in one file, which goes away when the clip is done."""

    def __init__(self, output: str) -> None:
        clip = Path(output)
        self.path = clip.with_name((clip.stem if clip.suffix else clip.name) + ENDING)
        self._shown = False

    def __enter__(self) -> "PreviewPicture":
        return self

    def show(self, event: Event) -> None:
        """Draws the event, if it is a preview."""
        if not isinstance(event, Preview):
            return
        from daifuku.media.encode import png
        from daifuku.weights.files import published

        try:
            with published(self.path) as file:
                file.write(png(_sheet(event.frames)))
        except UnwritableOutput as error:
            say(f"warning: {error}")
            return
        if not self._shown:
            say(f"preview: {self.path}")
        self._shown = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shown:
            self.path.unlink(missing_ok=True)


def _sheet(frames: "np.ndarray") -> "np.ndarray":
    """Evenly chosen frames side by side, enlarged."""
    import numpy as np
    from einops import rearrange, repeat

    chosen = frames[np.linspace(0, len(frames) - 1, min(len(frames), MAX_COLUMNS)).round().astype(int)]
    return repeat(rearrange(chosen, "t h w k -> h (t w) k"), "h w k -> (h p) (w q) k", p=CELL, q=CELL)
