"""The page: which component tells which function, and what is sent along with it."""

from collections.abc import Callable
from typing import Any

import gradio as gr
import httpx
from gradio.components import Component

from daifuku.studio import form
from daifuku.studio.client import Api
from daifuku.studio.deeds import Deeds
from daifuku.studio.handlers import Session
from daifuku.studio.layout import Parts, lay_out

MAX_CALLS = 1000
"""Of all pages at a time, and as many that wait. An open page is one for as long as it is open."""

QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
"""No veil over what changes, and no place in Gradio's own API."""


def build_page(http: httpx.AsyncClient) -> gr.Blocks:
    """The page over the server that those connections lead to."""
    with gr.Blocks(title="Daifuku", analytics_enabled=False, fill_width=True) as page:
        parts = lay_out(Session())
        deeds = Deeds(parts, lambda key: Api(http, key or ""))
        _bind_work(page, parts, deeds)
        _bind_form(parts, deeds)
    # Gradio counts threads, and no listener of ours takes one.
    page.max_threads = MAX_CALLS
    page.queue(default_concurrency_limit=None, max_size=MAX_CALLS, api_open=False)
    return page


def _bind_work(page: gr.Blocks, parts: Parts, deeds: Deeds) -> None:
    asked = [parts.session, parts.key]
    shown = [parts.stage, parts.gallery]
    form_parts = parts.form
    around = [parts.key, parts.header, form_parts.loras, form_parts.buttons["generate"], form_parts.preset_help]
    filled = [*form_parts.fields.values(), form_parts.custom_size]
    opening: dict[str, Any] = {"inputs": asked, "outputs": [*around, *filled, *shown], **QUIET}
    page.load(deeds.live, js="(session) => [session, recallKey()]", **opening)
    parts.key.submit(deeds.live, js="(session, key) => [session, keepKey(key)]", **opening)

    sent = [*shown, *form_parts.notes.values()]
    click = form_parts.buttons["generate"].click
    click(deeds.generate, [*asked, *form_parts.fields.values()], sent, **QUIET)
    for html in (parts.stage, parts.gallery):
        for name in ("open", "more", "cancel", "replay", "vary", "remove", "compare", "alone"):
            _on(html, name)(getattr(deeds, name), asked, shown, **QUIET)
        _on(html, "edit")(deeds.edit, asked, filled, **QUIET)
        _on(html, "example")(deeds.example, asked, form_parts.fields["prompt"], **QUIET)


def _bind_form(parts: Parts, deeds: Deeds) -> None:
    fields, buttons = parts.form.fields, parts.form.buttons
    prompt, size, preset, seed = (fields[name] for name in ("prompt", "size", "preset", "seed"))
    counted = {"trigger_mode": "always_last", **QUIET}
    _on(prompt, "change")(deeds.count, [prompt, parts.key], parts.form.tokens, **counted)
    _on(size, "input")(_is_custom, size, parts.form.custom_size, **QUIET)
    chosen = [fields["steps"], fields["guidance"], parts.form.preset_help]
    # Emptied in the browser at once: who asks for a clip before the server has answered leaves them to the preset.
    _on(preset, "input")(None, None, chosen[:2], js="() => [null, null]", **QUIET)
    _on(preset, "input")(deeds.preset, [parts.session, preset], chosen, **QUIET)
    length = [fields["num_frames"], fields["fps"]]
    gr.on(
        [_on(each, "change") for each in length],
        None,
        length,
        parts.form.length,
        js="(frames, fps) => lengthNote(frames, fps)",
        **QUIET,
    )
    buttons["roll"].click(None, None, seed, js="() => rollSeed()", **QUIET)
    buttons["reuse"].click(deeds.reuse, parts.session, seed, **QUIET)


def _on(component: Component, name: str) -> Callable[..., Any]:
    """An event of a component: one of Gradio's, or one that buttons inside HTML cause."""
    return getattr(component, name)


async def _is_custom(size: str) -> Any:
    return gr.update(visible=size == form.CUSTOM)
