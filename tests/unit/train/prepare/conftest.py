"""A small folder of training data."""

import json
from pathlib import Path

import numpy as np
import pytest

from daifuku import world
from daifuku.media.encode import png
from daifuku.media.write import VideoWriter


def write(path: str | Path, frames: np.ndarray, fps: int = 20) -> None:
    with VideoWriter(path, fps=fps, size=frames.shape[1:3]) as writer:
        writer.write(frames)


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shots in one film, a film in a folder, a GIF, a picture, a folder of frames, and one that is broken."""
    root = tmp_path_factory.mktemp("videos")
    clips = [world.clip(5, index, size=64, num_frames=15) for index in range(6)]
    write(root / "two.mp4", np.concatenate([clips[0].frames[:8], clips[1].frames[:9]]))
    (root / "two.txt").write_text("two shots\n\na cut between them\n")
    (root / "inside").mkdir()
    write(root / "inside" / "one.webm", clips[2].frames)
    (root / "inside" / "one.txt").write_text(clips[2].caption)
    write(root / "inside" / "moving.gif", clips[3].frames[:8])
    write(f"{root}/frames/", clips[4].frames[:7])
    (root / "still.png").write_bytes(png(clips[5].frames[0]))
    (root / "broken.mp4").write_bytes(b"nothing")
    lines = [("inside/moving.gif", clips[3].caption), ("frames", clips[4].caption), ("still.png", "a still")]
    lines.append(("broken.mp4", "nothing"))
    text = "".join(json.dumps({"file": file, "caption": caption}) + "\n" for file, caption in lines)
    (root / "captions.jsonl").write_text(text)
    (root / "README.md").write_text("about")
    return root
