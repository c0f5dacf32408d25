"""The components of the page, and where they stand."""

from dataclasses import dataclass, field

import gradio as gr
from gradio.components import Component

from daifuku.request import GenerateRequest
from daifuku.studio import cards, form

LISTEN = "listen(element, trigger, {actions});"
"""Buttons inside HTML pass on what they are for; studio.js knows how."""

ACTIONS = ("open", "more", "example", "cancel", "replay", "vary", "edit", "remove", "compare", "alone")


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The components that functions read and write."""

    session: gr.State
    key: gr.Textbox
    header: gr.HTML
    stage: gr.HTML
    gallery: gr.HTML
    form: "FormParts"


@dataclass(kw_only=True)
class FormParts:
    """The components of the form."""

    fields: dict[str, Component] = field(default_factory=dict)
    """By the names that `form.from_values` reads, in the order in which listeners get them."""
    notes: dict[str, gr.HTML] = field(default_factory=dict)
    """Below each field, what is wrong with it."""
    buttons: dict[str, gr.Button] = field(default_factory=dict)
    tokens: gr.HTML | None = None
    length: gr.HTML | None = None
    preset_help: gr.HTML | None = None
    custom_size: gr.Row | None = None
    loras: gr.Row | None = None

    def number(self, name: str, label: str, *, of: str, step: float | None = None) -> None:
        """A field for a number, within what a request allows for its own field `of`."""
        about = GenerateRequest.__dataclass_fields__[of].metadata
        limits = {"minimum": about["min"], "maximum": about["max"], "precision": 0 if about["type"] is int else None}
        self.fields[name] = gr.Number(label=label, min_width=88, step=step or 1, **limits)

    def note(self, name: str) -> None:
        """The place for what is wrong with a field."""
        self.notes[name] = gr.HTML("", visible=False, apply_default_css=False, elem_classes="note")

    def aside(self) -> gr.HTML:
        """A line of small print."""
        return gr.HTML("", apply_default_css=False, elem_classes="aside")


def lay_out(session: object) -> Parts:
    """Everything, inside a `gr.Blocks`. Values come when the page is opened."""
    state = gr.State(session)
    header = gr.HTML(cards.header(None), apply_default_css=False, elem_id="top")
    key = gr.Textbox(
        "",
        label="API key",
        type="password",
        max_lines=1,
        visible=False,
        elem_id="key",
        info="This server asks for one. It is kept in this browser. Press Enter.",
    )
    with gr.Row(elem_id="rooms"):
        with gr.Column(elem_id="form", scale=0, min_width=320):
            parts = _form()
        with gr.Column(elem_id="work", scale=1, min_width=300):
            listen = LISTEN.format(actions=list(ACTIONS))
            stage = gr.HTML(cards.stage(None, {}), js_on_load=listen, apply_default_css=False, elem_id="stage")
            gallery = gr.HTML("", js_on_load=listen, apply_default_css=False, elem_id="gallery")
    return Parts(session=state, key=key, header=header, stage=stage, gallery=gallery, form=parts)


def _form() -> FormParts:
    parts = FormParts()
    parts.fields["prompt"] = gr.Textbox(
        label="Prompt", lines=4, max_lines=12, max_length=10_000, placeholder="What the video shows", elem_id="prompt"
    )
    parts.tokens = gr.HTML("", apply_default_css=False, elem_id="tokens")
    parts.note("prompt")
    parts.buttons["generate"] = gr.Button("Generate", variant="primary", elem_id="generate", interactive=False)
    _picture(parts)
    parts.fields["preset"] = gr.Radio(label="Preset", choices=[form.Form.preset], elem_id="preset")
    parts.preset_help = parts.aside()
    parts.note("preset")
    with gr.Row(elem_id="seed-row"):
        parts.fields["seed"] = gr.Textbox(
            label="Seed", placeholder="another each time", max_lines=1, elem_id="seed", min_width=120
        )
        for name, label in (("roll", "Roll"), ("reuse", "Reuse")):
            parts.buttons[name] = gr.Button(label, size="sm", scale=0, min_width=60, elem_id=name)
    parts.note("seed")
    with gr.Accordion("More", open=False, elem_id="more"):
        _more(parts)
    return parts


def _picture(parts: FormParts) -> None:
    start = form.Form()
    parts.fields["size"] = gr.Dropdown(label="Size", choices=form.sizes(start.width, start.height), elem_id="size")
    with gr.Row(visible=False) as parts.custom_size:
        for name in ("width", "height"):
            about = GenerateRequest.__dataclass_fields__[name].metadata
            parts.fields[name] = gr.Slider(
                label=name.capitalize(), minimum=about["min"], maximum=about["max"], step=about["step"], min_width=120
            )
    parts.note("size")
    about = GenerateRequest.__dataclass_fields__["num_frames"].metadata
    parts.fields["num_frames"] = gr.Slider(
        label="Frames", minimum=about["min"], maximum=about["max"], step=about["step"], elem_id="frames"
    )
    parts.length = parts.aside()
    parts.note("num_frames")


def _more(parts: FormParts) -> None:
    parts.fields["negative_prompt"] = gr.Textbox(
        label="Negative prompt", lines=2, max_length=10_000, placeholder="What to steer away from"
    )
    parts.note("negative_prompt")
    with gr.Row():
        parts.number("steps", "Steps", of="num_inference_steps")
        parts.number("guidance", "Guidance", of="guidance_scale", step=0.5)
        parts.number("fps", "Frames / s", of="fps")
    for name in ("steps", "guidance", "fps"):
        parts.note(name)
    with gr.Row(visible=False) as parts.loras:
        parts.fields["loras"] = gr.Dropdown(label="LoRAs", choices=[], multiselect=True, value=[], min_width=140)
        parts.fields["strength"] = gr.Number(label="Strength of each", value=1.0, step=0.1, min_width=88)
    parts.note("loras")
