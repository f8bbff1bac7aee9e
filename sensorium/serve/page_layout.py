"""What stands on the page, and what happens when something on it is used."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from gradio import themes

from sensorium.errors import UserError
from sensorium.serve.page_chat import Answer, Settings, Turn, ask, note, shown
from sensorium.serve.page_client import client_for

EMPTY = """### Ask about a picture

Drop, paste or upload one or several below, and write a question. A question without a picture works too."""

HEAD = """
<link rel="icon" href="data:image/svg+xml,%3Csvg xmlns=%22http://www.w3.org/2000/svg%22 viewBox=%220 0 16 16%22%3E\
%3Ccircle cx=%228%22 cy=%228%22 r=%227%22 fill=%22%232f6fde%22/%3E%3Ccircle cx=%228%22 cy=%228%22 r=%223%22 \
fill=%22white%22/%3E%3C/svg%3E">
<style>
.gradio-container {max-width: 1500px !important; padding: 0 !important}
.gradio-container .main.app {padding: 12px 24px !important}
.gradio-container #top {align-items: center; flex-wrap: nowrap}
.gradio-container #title {flex-grow: 1}
.gradio-container #title h1 {margin: 0; font-size: 1.25rem}
.gradio-container #compare {
  flex-grow: 0; min-width: max-content !important; border-width: 0 !important; padding: 4px !important; background: none
}
.gradio-container .column {min-width: min(320px, 100%) !important}
.gradio-container .chat {height: calc(100dvh - 318px) !important; min-height: 260px}
.gradio-container .chat > .wrapper > .icon-button-wrapper, .gradio-container .chat [aria-label="Share"],
.gradio-container .chat label[data-testid="block-label"] {display: none !important}
.gradio-container .chat .placeholder-content, .gradio-container .chat .placeholder {
  text-align: center; justify-content: center
}
.gradio-container .chat .placeholder {max-width: 420px; padding: 0 16px; margin: auto}
.gradio-container .chat .placeholder p, .gradio-container .note p {color: var(--neutral-500) !important}
.gradio-container .chat .image-frame img {max-height: 300px; width: auto; max-width: 100%; object-fit: contain}
.gradio-container .note {min-height: 1.3em}
.gradio-container .note p {margin: 0; font-size: .8rem}
.gradio-container #buttons button {flex-grow: 0; min-width: 110px}
@media (max-width: 700px) {
  .gradio-container .main.app {padding: 8px 10px !important}
  .gradio-container:has(#right) .chat {height: 42dvh !important}
}
</style>
"""
"""Two of the framework's buttons have no switch: the bin empties one column's display and not the conversation, and
"Share" would send a picture to another host (which the page's policy refuses as well)."""


def theme() -> themes.Base:
    """The system's own fonts: none is fetched."""
    sans = [themes.Font(name) for name in ("system-ui", "Segoe UI", "Noto Sans", "sans-serif")]
    mono = [themes.Font(name) for name in ("ui-monospace", "DejaVu Sans Mono", "monospace")]
    return themes.Default(primary_hue="blue", font=sans, font_mono=mono).set(layout_gap="10px")


class Page:
    """The page's events. Handlers get what its parts hold and say how these are to change."""

    def __init__(self, base_url: str, models: list[str], folder: Path) -> None:
        self.base_url, self.models, self.folder = base_url, models, folder
        self.running: dict[str, set[asyncio.Task[None]]] = defaultdict(set)
        """What is asked of the server, by session of the page."""

    def lay_out(self, asks_key: bool) -> None:
        first, second = self.models[0], self.models[min(1, len(self.models) - 1)]
        comparing = len(self.models) == 2
        with gr.Row(elem_id="top"):
            gr.Markdown("# Sensorium", elem_id="title")
            self.compare = gr.Checkbox(comparing, label="Compare two models", container=False, elem_id="compare")
        self.turns = gr.State([])
        with gr.Row():
            with gr.Column(elem_classes="column"):
                self.left, self.left_model, self.left_note = self._column(first, "left")
            with gr.Column(elem_classes="column", visible=comparing) as self.second:
                self.right, self.right_model, self.right_note = self._column(second, "right")
        self.box = gr.MultimodalTextbox(
            file_types=["image"], file_count="multiple", sources=["upload"], show_label=False, lines=1, max_lines=8,
            placeholder="Ask something; drop or paste pictures here", max_plain_text_length=1_000_000, autofocus=True,
            elem_id="box",
        )  # fmt: skip
        with gr.Row(elem_id="buttons"):
            self.again = gr.Button("Regenerate", size="sm", interactive=False, elem_id="again")
            self.clear = gr.Button("Clear", size="sm", interactive=False, elem_id="clear")
        with gr.Accordion("Settings", open=asks_key, elem_id="settings"):
            self.settings = self._settings(asks_key)

    def _column(self, model: str, side: str) -> tuple[gr.Chatbot, gr.Dropdown, gr.Markdown]:
        choice = gr.Dropdown(self.models, value=model, label="Model", show_label=False, container=False,
                             interactive=len(self.models) > 1, elem_id=f"{side}-model")  # fmt: skip
        chat = gr.Chatbot(show_label=False, placeholder=EMPTY, buttons=["copy"], elem_id=side, elem_classes="chat",
                          allow_tags=False, feedback_options=None)  # fmt: skip
        return chat, choice, gr.Markdown("", elem_classes="note", elem_id=f"{side}-note")

    def _settings(self, asks_key: bool) -> list[Any]:
        """In the order of the fields of `Settings`."""
        plain = Settings()
        system = gr.Textbox(label="System prompt", lines=2, placeholder="none", elem_id="system")
        with gr.Row():
            temperature = gr.Slider(0, 2, plain.temperature, step=0.05, label="Temperature", elem_id="temperature",
                                    info="0: the likeliest word each time; regenerating changes nothing")  # fmt: skip
            top_p = gr.Slider(0.05, 1, plain.top_p, step=0.05, label="Top p", elem_id="top-p",
                              info="Draw from the likeliest words that together have this probability")  # fmt: skip
        with gr.Row():
            longest = gr.Number(plain.max_tokens, label="Largest number of tokens", precision=0, minimum=1,
                                elem_id="max-tokens")  # fmt: skip
            seed = gr.Textbox(label="Seed", placeholder="another one each time", max_lines=1, elem_id="seed")
        key = gr.Textbox(label="API key", type="password", visible=asks_key, elem_id="key",
                         info="Sent to the server with every question; kept in this tab alone")  # fmt: skip
        return [system, temperature, top_p, longest, seed, key]

    def connect(self, page: gr.Blocks) -> None:
        choices = [self.compare, self.left_model, self.right_model]
        given = [self.turns, *choices, *self.settings]
        parts = [
            self.turns, self.left, self.right, self.left_note, self.right_note, self.box, self.again, self.clear,
            *choices,
        ]  # fmt: skip
        common: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        streams = {"outputs": parts, "concurrency_limit": None, **common}
        self.box.submit(self.asked, [self.box, *given], **streams)
        self.again.click(self.asked_again, given, **streams)
        self.box.stop(self.stopped, None, None, queue=False, **common)
        self.clear.click(self.cleared, None, parts, queue=False, **common)
        self.compare.change(self.compared, [self.compare, self.turns], [self.second, self.right, self.right_note],
                            queue=False, **common)  # fmt: skip
        page.unload(self.stopped)

    # ---- handlers

    async def asked(
        self, request: gr.Request, message: dict[str, Any] | None, turns: list[Turn], compare: bool, left: str,
        right: str, *settings: Any,
    ) -> AsyncIterator[dict[Any, Any]]:  # fmt: skip
        text, pictures = (message or {}).get("text") or "", tuple((message or {}).get("files") or ())
        if not text.strip() and not pictures:
            return
        turn = Turn(text.strip(), pictures, [Answer(name) for name in ((left, right) if compare else (left,))])
        async for change in self._ask([*turns, turn], settings, request, emptied={"value": None}):
            yield change

    async def asked_again(
        self, request: gr.Request, turns: list[Turn], compare: bool, left: str, right: str, *settings: Any
    ) -> AsyncIterator[dict[Any, Any]]:
        """The last question once more, of the models that are chosen now."""
        if not turns:
            return
        *before, last = turns
        turn = Turn(last.text, last.pictures, [Answer(name) for name in ((left, right) if compare else (left,))])
        async for change in self._ask([*before, turn], settings, request, emptied={}):
            yield change

    async def _ask(
        self, turns: list[Turn], settings: Sequence[Any], request: gr.Request, emptied: dict[str, Any]
    ) -> AsyncIterator[dict[Any, Any]]:
        tasks = self.running[str(request.session_hash)]
        if tasks:  # Enter, while an answer is written
            return
        try:
            chosen = settings_of(*settings)
        except UserError as error:
            gr.Warning(str(error))
            return
        locked = {part: type(part)(interactive=False) for part in (self.again, self.clear, self.compare)}
        busy = gr.MultimodalTextbox(submit_btn=False, stop_btn=True, **emptied)
        yield {**locked, **self._shown(turns), self.turns: turns, self.box: busy}
        try:
            async with client_for(self.base_url) as client:
                async for _ in ask(client, turns, chosen, self.folder, tasks):
                    yield self._shown(turns)
        finally:
            self.running.pop(str(request.session_hash), None)
        free = {part: type(part)(interactive=True) for part in locked}
        yield {**free, **self._shown(turns), self.turns: turns,
               self.box: gr.MultimodalTextbox(submit_btn=True, stop_btn=False)}  # fmt: skip

    def _shown(self, turns: list[Turn]) -> dict[Any, Any]:
        """What both columns hold. The second one is filled where its model was asked."""
        columns = [(self.left, self.left_note), (self.right, self.right_note)][: len(turns[-1].answers)]
        made: dict[Any, Any] = {}
        for column, (chat, line) in enumerate(columns):
            made |= {chat: shown(turns, column), line: note(turns, column)}
        return made

    async def stopped(self, request: gr.Request) -> None:
        for task in list(self.running.get(str(request.session_hash), ())):
            task.cancel()

    async def cleared(self) -> dict[Any, Any]:
        off = {part: type(part)(interactive=False) for part in (self.again, self.clear)}
        return {self.turns: [], self.left: [], self.right: [], self.left_note: "", self.right_note: "", **off}

    async def compared(self, compare: bool, turns: list[Turn]) -> tuple[Any, Any, Any]:
        """The second column begins with what was said so far."""
        if not compare or not turns:
            return gr.Column(visible=compare), gr.skip(), gr.skip()
        return gr.Column(visible=True), shown(turns, 1), note(turns, 1)


def settings_of(
    system: str | None, temperature: float, top_p: float, max_tokens: float | None, seed: str | None, key: str | None
) -> Settings:
    """What the fields of the page hold; None: they were never seen. Raises UserError with a sentence."""
    if max_tokens is None or max_tokens < 1:
        raise UserError("The largest number of tokens must be a whole number above 0.")
    digits = (seed or "").strip()
    if digits and not (digits.isascii() and digits.isdigit()):
        raise UserError(f"The seed must be a whole number, or empty for another one each time: {digits!r} was given.")
    number = int(digits) if digits else None
    return Settings(system or "", float(temperature), float(top_p), int(max_tokens), number, (key or "").strip())


def build(base_url: str, models: list[str], asks_key: bool, folder: Path) -> gr.Blocks:
    """The page as the framework knows it. Nothing is measured or reported; what is uploaded goes after a day."""
    page = Page(base_url, models, folder)
    with gr.Blocks(title="Sensorium", analytics_enabled=False, fill_width=True, delete_cache=(3600, 86400)) as blocks:
        page.lay_out(asks_key)
        page.connect(blocks)
    return blocks
