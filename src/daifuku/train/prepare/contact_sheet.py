"""One picture to look at before training: first, middle and last frame of some clips, as the model will see them."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from daifuku.train.prepare.encode import Encoding, nearest
from daifuku.train.prepare.plan import PlannedClip
from daifuku.train.prepare.scan import source_pictures
from daifuku.weights.files import published

FILE = "contact_sheet.png"
MAX_CLIPS = 24
ROW_HEIGHT, TEXT_WIDTH, MARGIN = 96, 420, 6
"""In pixels."""

_LINE_CHARACTERS, _NUM_LINES = 60, 4


def write_contact_sheet(encoding: Encoding, clips: Sequence[PlannedClip]) -> Path | None:
    """At most MAX_CLIPS clips, spread evenly, with the beginning of their first caption. None without Pillow."""
    try:
        from PIL import Image, ImageDraw
    except ImportError:
        return None
    num_rows = min(len(clips), MAX_CLIPS)
    shown = [clips[(2 * i + 1) * len(clips) // (2 * num_rows)] for i in range(num_rows)]
    widths = [3 * (_width(clip) + MARGIN) for clip in shown]
    row = ROW_HEIGHT + MARGIN
    sheet = Image.new("RGB", (max(widths) + TEXT_WIDTH, num_rows * row + MARGIN), "lightgrey")
    draw = ImageDraw.Draw(sheet)
    for index, clip in enumerate(shown):
        top = MARGIN + index * row
        for column, frame in enumerate(three_frames(encoding, clip)):
            small = Image.fromarray(frame).resize((_width(clip), ROW_HEIGHT), Image.Resampling.LANCZOS)
            sheet.paste(small, (MARGIN + column * (_width(clip) + MARGIN), top))
        draw.multiline_text((max(widths) + 2 * MARGIN, top), _label(clip), "black", font_size=12)
    content = BytesIO()
    sheet.save(content, "PNG")
    with published(encoding.out / FILE) as file:
        file.write(content.getvalue())
    return encoding.out / FILE


def three_frames(encoding: Encoding, clip: PlannedClip) -> list[UInt8[np.ndarray, "h w 3"]]:
    """First, middle and last frame of a clip."""
    times = [clip.start_s + index / encoding.fps for index in (0, clip.num_frames // 2, clip.num_frames - 1)]
    found = source_pictures(encoding.videos, clip.source, encoding.fps, encoding.limits)
    return [picture.covering(clip.size) for picture in nearest(found, times)]


def _width(clip: PlannedClip) -> int:
    return max(round(ROW_HEIGHT * clip.size[1] / clip.size[0]), 1)


def _label(clip: PlannedClip) -> str:
    """Where the clip is from, and its first caption, in short lines."""
    caption = clip.source.captions[0]
    lines = [caption[i : i + _LINE_CHARACTERS] for i in range(0, len(caption), _LINE_CHARACTERS)][:_NUM_LINES]
    return "\n".join([clip.id[-_LINE_CHARACTERS:], *lines])
