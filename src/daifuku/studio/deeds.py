"""What the page does when something is clicked or typed: each method is one of Gradio's listeners."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import gradio as gr

from daifuku.studio import cards, form, handlers
from daifuku.studio.client import Api, Model, Refused
from daifuku.studio.handlers import Session
from daifuku.studio.layout import Parts

LOADING_TRIES = 600
"""How often the page asks for a model that is being loaded, about once a second."""

NOTE_OF = {"width": "size", "height": "size", "num_inference_steps": "steps", "guidance_scale": "guidance"}
"""Where the form says what is wrong with a field that the API calls otherwise."""


class Deeds:
    """The listeners of one page; a session is what one open copy of it shows."""

    def __init__(self, parts: Parts, api_of: Callable[[str], Api]) -> None:
        self._parts = parts
        self._api_of = api_of

    async def live(self, session: Session, key: str) -> AsyncIterator[Any]:
        """The page was opened, or got another key: fills it, and keeps it up to date until it is closed.

        It never ends by itself. Gradio closes the stream of a page's answers whenever no listener runs, and loses the
        answer to a click that comes just then.
        """
        parts, api = self._parts, self._api_of(key)
        session.videos = []
        session.choose(None)
        try:
            model = session.model = await handlers.model_of(api, LOADING_TRIES)
            await handlers.refresh(session, api)
        except Refused as error:
            if error.status not in (401, 403) or key:
                gr.Warning(cards.text(error))
            yield {parts.key: gr.update(visible=error.status in (401, 403)), **self._shown(session)}
            return
        session.choose(handlers.first_choice(session))
        yield self._opened(session, model)
        async for _ in handlers.watch(session, api):
            yield self._shown(session)

    def _opened(self, session: Session, model: Model) -> dict[Any, Any]:
        parts = self._parts
        return {
            parts.key: gr.update(visible=False),
            parts.header: cards.header(model.name),
            parts.form.loras: gr.update(visible=bool(model.loras)),
            parts.form.buttons["generate"]: gr.update(interactive=True),
            parts.form.preset_help: cards.text(form.preset_help(form.own_form(model).preset)),
            **self._filled(model, form.own_form(model)),
            **self._shown(session),
        }

    async def count(self, prompt: str, key: str) -> Any:
        """Tokens of what was typed."""
        await asyncio.sleep(handlers.TYPING_S)
        try:
            return cards.tokens(*await self._api_of(key).num_tokens(prompt))
        except Refused:
            return gr.skip()

    async def generate(self, session: Session, key: str, *values: Any) -> Any:
        """A new job of what stands in the form; what is wrong with it is said where it stands."""
        parts = self._parts.form
        notes = {note: gr.update(value="", visible=False) for note in parts.notes.values()}
        try:
            wanted = form.from_values(dict(zip(parts.fields, values, strict=True)))
            handlers.begin(session, await self._api_of(key).create(wanted.body()))
        except Refused as error:
            name = NOTE_OF.get(error.param or "", error.param or "")
            notes[parts.notes.get(name, parts.notes["prompt"])] = gr.update(
                value=cards.problem(str(error)), visible=True
            )
        return {**self._shown(session), **notes}

    async def open(self, session: Session, key: str, event: gr.EventData) -> Any:
        """A video of the gallery was clicked: it is shown, or beside the one that is."""
        if session.picking and event.id != session.chosen and session.find(event.id):
            session.other, session.picking = event.id, False
        else:
            session.choose(event.id)
        return self._shown(session)

    async def compare(self, session: Session, key: str, event: gr.EventData) -> Any:
        """The next video that is clicked comes beside this one."""
        session.picking = not session.picking
        return self._shown(session)

    async def alone(self, session: Session, key: str, event: gr.EventData) -> Any:
        """One video instead of two."""
        session.choose(session.chosen)
        return self._shown(session)

    async def more(self, session: Session, key: str, event: gr.EventData) -> Any:
        """Older videos."""
        return await self._tried(session, handlers.more(session, self._api_of(key)))

    async def cancel(self, session: Session, key: str, event: gr.EventData) -> Any:
        """The job is not wanted any more."""
        return await self._tried(session, handlers.cancel(session, self._api_of(key), event.id))

    async def replay(self, session: Session, key: str, event: gr.EventData) -> Any:
        """The same once more."""
        return await self._tried(session, handlers.again(session, self._api_of(key), event.id, {}))

    async def vary(self, session: Session, key: str, event: gr.EventData) -> Any:
        """The same with another seed."""
        return await self._tried(session, handlers.again(session, self._api_of(key), event.id, form.varied()))

    async def remove(self, session: Session, key: str, event: gr.EventData) -> Any:
        """The video is to be forgotten; the page has asked whether that is meant."""
        return await self._tried(session, handlers.remove(session, self._api_of(key), event.id))

    async def edit(self, session: Session, key: str, event: gr.EventData) -> Any:
        """Everything about a video, in the form."""
        video = session.find(event.id)
        if video is None or session.model is None:
            return gr.skip()
        return self._filled(session.model, form.form_of(video))

    async def example(self, session: Session, key: str, event: gr.EventData) -> Any:
        """A prompt to begin with."""
        return {self._parts.form.fields["prompt"]: cards.EXAMPLES[int(event.number)]}

    async def preset(self, session: Session, name: str) -> Any:
        """Steps and guidance that the preset stands for."""
        if session.model is None:
            return gr.skip()
        return (*form.preset_values(name, session.model), cards.text(form.preset_help(name)))

    async def reuse(self, session: Session) -> Any:
        """The seed of the video that is shown."""
        video = session.find(session.chosen)
        return gr.skip() if video is None else str(video["seed"])

    async def _tried(self, session: Session, deed: Awaitable[None]) -> Any:
        try:
            await deed
        except Refused as error:
            gr.Warning(cards.text(error))
        return self._shown(session)

    def _shown(self, session: Session) -> dict[Any, Any]:
        parts = self._parts
        return {parts.stage: session.stage(), parts.gallery: session.gallery()}

    def _filled(self, model: Model, filled: form.Form) -> dict[Any, Any]:
        """The form with those values."""
        fields, own = self._parts.form.fields, form.own_form(model)
        choices, size = form.sizes(own.width, own.height), f"{filled.width}x{filled.height}"
        known = size in [value for _, value in choices]
        longest = max(form.longest(own.num_frames), filled.num_frames)
        plain = ("prompt", "negative_prompt", "width", "height", "fps", "steps", "guidance", "seed", "strength")
        return {
            **{fields[name]: getattr(filled, name) for name in plain},
            fields["size"]: gr.update(choices=choices, value=size if known else form.CUSTOM),
            self._parts.form.custom_size: gr.update(visible=not known),
            fields["num_frames"]: gr.update(value=filled.num_frames, maximum=longest),
            fields["preset"]: gr.update(value=filled.preset, choices=model.fields["preset"]["enum"]),
            fields["loras"]: gr.update(value=list(filled.loras), choices=model.loras),
        }
