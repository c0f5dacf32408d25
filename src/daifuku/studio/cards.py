"""The parts of the page that show videos, as HTML. Whatever a user wrote is escaped, and stays the text it is."""

import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any

from daifuku.studio.client import Video

ENDED = ("completed", "failed", "cancelled")

STATUS = {
    "queued": "Waiting",
    "in_progress": "In the making",
    "completed": "Done",
    "failed": "Failed",
    "cancelled": "Cancelled",
}
STAGES = {
    None: "Starting",
    "starting": "Starting",
    "text": "Reading the prompt",
    "sampling": "Sampling",
    "decoding": "Decoding",
}

EXAMPLES = (
    "a small red ball bouncing on a gray background",
    "a large yellow star swinging like a pendulum on a navy background",
    "a purple square rolling to the right on a white background",
)
"""What the built-in model knows how to draw; larger models do as well."""

RECORD = {
    "prompt": "Prompt",
    "negative_prompt": "Negative prompt",
    "model": "Model",
    "size": "Size",
    "num_frames": "Frames",
    "fps": "Frames per second",
    "seed": "Seed",
    "preset": "Preset",
    "num_inference_steps": "Steps",
    "guidance_scale": "Guidance",
    "solver": "Solver",
    "loras": "LoRAs",
    "remixed_from_video_id": "Made from",
    "attempts": "Attempts",
    "frames_sha256": "Hash of the frames",
    "id": "Job",
}


def text(value: object) -> str:
    """Anything, as text inside HTML or inside an attribute."""
    return escape(str(value), quote=True)


def stage(video: Video | None, live: Mapping[str, Any], other: Video | None = None, *, picking: bool = False) -> str:
    """The chosen video, large: how far it is, or what came of it. `other` is compared with it."""
    if video is None:
        return _empty()
    if other is not None:
        return _pair(video, other)
    screen = _screen(video, live)
    hint = '<p class="hint" role="status">Choose a second video below to play both side by side.</p>' if picking else ""
    return (
        f'<article class="stage is-{text(video["status"])}" aria-label="Chosen video" data-id="{text(video["id"])}" '
        f'data-frames="{text(video["frames_sha256"] or "")}">'
        f'{screen}{hint}<p class="prompt">{text(video["prompt"])}</p><p class="facts">{_facts(video)}</p>'
        f"{_actions(video)}{_record(video)}</article>"
    )


def gallery(videos: Sequence[Video], chosen: str | None, *, has_more: bool) -> str:
    """All videos, small, the newest first."""
    if not videos:
        return ""
    cards = "".join(_card(video, is_chosen=video["id"] == chosen) for video in videos)
    more = '<button class="quiet" data-do="more">Show older ones</button>' if has_more else ""
    return f'<section class="gallery" aria-label="Your videos"><h2>Your videos</h2><ul>{cards}</ul>{more}</section>'


def tokens(count: int, limit: int) -> str:
    """How much of what the model reads a prompt fills."""
    share = min(100, round(100 * count / limit))
    over = count - limit
    said = f"{count} of {limit} tokens" + (f": the last {over} will not be read" if over > 0 else "")
    mood = "over" if over > 0 else "near" if share > 85 else "fits"
    return f'<div class="tokens is-{mood}" role="status"><i style="--share:{share}%"></i><span>{said}</span></div>'


def problem(message: str) -> str:
    """What the API said about a field, in its own words."""
    return f'<p class="problem" role="alert">{text(message)}</p>'


def header(model: str | None) -> str:
    """The head of the page, and which model is there."""
    name = "the model is being loaded" if model is None else model
    mood = "loading" if model is None else "ready"
    return (
        f'<header class="head">{_LOGO}<h1>Daifuku</h1><span class="model is-{mood}" role="status">{text(name)}</span>'
        "</header>"
    )


def seconds(value: int | float) -> str:
    """A duration as people say it."""
    whole = max(1, math.ceil(value))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _empty() -> str:
    examples = "".join(
        f'<li><button class="example" data-do="example" data-number="{number}">{text(each)}</button></li>'
        for number, each in enumerate(EXAMPLES)
    )
    return (
        f'<article class="stage is-empty" aria-label="No video yet">{_LOGO}<h2>A video starts with a sentence</h2>'
        f"<p>Say what moves, how, and in front of what. Or begin with one of these:</p><ul>{examples}</ul></article>"
    )


def _screen(video: Video, live: Mapping[str, Any]) -> str:
    ratio = f"--ratio:{video['width']}/{video['height']}"
    status = video["status"]
    if status == "completed" and video["files"] is not None:
        return f'<div class="screen" style="{ratio}">{_clip(video)}</div>'
    if status == "completed":
        return f'<div class="screen" style="{ratio}"><p>The files of this video are not kept any more.</p></div>'
    if status == "failed":
        error = video["error"] or {}
        code = text(error.get("code", ""))
        return (
            f'<div class="screen" style="{ratio}"><p class="problem" role="alert">{text(error.get("message", ""))}'
            f" <code>{code}</code></p></div>"
        )
    if status == "cancelled":
        return f'<div class="screen" style="{ratio}"><p>Cancelled.</p></div>'
    image = live.get("image", "")
    # The server makes it, and yet nothing but a picture gets in here.
    picture = ""
    if image.startswith("data:image/png;base64,"):
        picture = (
            f'<studio-preview role="img" aria-label="Preview of step {int(live["step_seen"])}" image="{text(image)}" '
            f'width="{video["width"]}" height="{video["height"]}"></studio-preview>'
        )
    return f'<div class="screen is-live" style="{ratio}">{picture}{_progress(video, live)}</div>'


def _progress(video: Video, live: Mapping[str, Any]) -> str:
    if video["status"] == "queued":
        ahead = (video.get("queue_position") or 1) - 1
        said = "Next in line" if ahead <= 0 else f"{ahead} job{'s' if ahead > 1 else ''} before this one"
        return f'<div class="progress" role="status"><p><b>Waiting</b><span>{said}</span></p></div>'
    percent = int(video.get("progress") or 0)
    of = f"{live['step']} of {live['total']}" if live.get("total") else ""
    left = f"about {seconds(live['left_s'])} left" if live.get("left_s") is not None else ""
    label = STAGES.get(video.get("stage"), STAGES[None])
    return (
        f'<div class="progress"><p><b>{label}</b><span>{" · ".join(part for part in (of, left) if part)}</span></p>'
        f'<div class="bar" role="progressbar" aria-label="Progress" aria-valuemin="0" aria-valuemax="100" '
        f'aria-valuenow="{percent}"><i style="width:{percent}%"></i></div></div>'
    )


def _clip(video: Video) -> str:
    return f'<studio-clip video="{text(video["id"])}" label="{text(video["prompt"])}"></studio-clip>'


def _facts(video: Video) -> str:
    facts = [
        f"{video['width']} x {video['height']}",
        f"{video['num_frames']} frames, {round(float(video['seconds']), 2)} s",
        f"{video['num_inference_steps']} steps",
        f"seed {video['seed']}",
    ]
    timings = video["timings"] or {}
    if video["status"] == "completed" and timings:
        facts.append(f"made in {seconds(sum(each for each in timings.values() if isinstance(each, int | float)))}")
    return "".join(f"<span>{text(fact)}</span>" for fact in facts)


def _actions(video: Video) -> str:
    buttons = []
    if video["status"] not in ENDED:
        buttons = [("cancel", "Cancel", "")]
    elif video["status"] == "completed":
        buttons = [
            ("replay", "Replay", "The same once more, bit for bit"),
            ("vary", "Vary", "The same with another seed"),
            ("edit", "Edit", "Put everything into the form"),
        ]
        if video["files"] is not None:
            buttons += [
                ("compare", "Compare", "Play beside another one"),
                ("save", "Download", "The mp4, which carries its record"),
                ("save-record", "JSON", "All parameters as JSON"),
            ]
        buttons += [("remove", "Delete", "")]
    else:
        buttons = [("edit", "Edit", "Put everything into the form"), ("remove", "Delete", "")]
    shown = "".join(
        f'<button data-do="{do}" data-id="{text(video["id"])}" title="{about}">{label}</button>'
        for do, label, about in buttons
    )
    return f'<div class="actions">{shown}</div>'


def _record(video: Video) -> str:
    rows = "".join(
        f"<dt>{label}</dt><dd>{text(_shown(video.get(name)))}</dd>"
        for name, label in RECORD.items()
        if video.get(name) not in (None, "", [])
    )
    created = datetime.fromtimestamp(video["created_at"], UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return (
        f"<details><summary>Everything about it</summary><dl>{rows}<dt>Accepted</dt><dd>{created}</dd></dl></details>"
    )


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else str(value)


def _pair(first: Video, second: Video) -> str:
    sides = "".join(
        f'<figure><div class="screen" style="--ratio:{video["width"]}/{video["height"]}">{_clip(video)}</div>'
        f'<figcaption>{text(video["prompt"])}<p class="facts">{_facts(video)}</p></figcaption></figure>'
        for video in (first, second)
    )
    return (
        '<article class="stage is-pair" aria-label="Two videos side by side">'
        f'<studio-pair></studio-pair><div class="sides">{sides}</div>'
        f'<div class="actions"><button data-do="alone">Back to one</button></div></article>'
    )


def _card(video: Video, *, is_chosen: bool) -> str:
    is_there = video["status"] == "completed" and video["files"] is not None
    ratio = f"--ratio:{video['width']}/{video['height']}"
    still = f'<i class="blank" style="{ratio}"></i>'
    if is_there:
        still = f'<studio-still video="{text(video["id"])}" style="{ratio}"></studio-still>'
    status = "" if is_there else f'<span class="status">{STATUS.get(video["status"], "")}</span>'
    current = ' aria-current="true"' if is_chosen else ""
    return (
        f'<li><button class="card is-{text(video["status"])}" data-do="open" data-id="{text(video["id"])}"{current}>'
        f'{still}{status}<span class="name">{text(video["prompt"])}</span></button></li>'
    )


_LOGO = (
    '<svg class="logo" viewBox="0 0 40 40" aria-hidden="true"><path d="M3 28C3 16 10 7 20 7s17 9 17 21c0 4-7 6-17 6S3 '
    '32 3 28z"/><ellipse cx="20" cy="24" rx="9" ry="7"/></svg>'
)
