"""What the sub-tabs share: how their buttons answer, and lists of erasures that are always up to date."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

import gradio as gr
from modules import call_queue, shared

from erasure_core.errors import ErasureError

from . import places, show
from .panel import choices
from .wishes import NONE

PREFIX = "concept_erasure"


def guarded(work: Callable[..., str]) -> Callable[..., str]:
    """Show what a user can cause as one sentence, and anything else as such, never as a page that stands still."""

    def run(*values: Any) -> str:
        try:
            return show.message(work(*values))
        except ErasureError as error:
            return show.message(places.told(error), is_error=True)
        except Exception:
            traceback.print_exc()
            return show.message("An unexpected error; see the console.", is_error=True)

    return run


def queued(work: Callable[..., str]) -> Callable[..., str]:
    """As ``guarded``, for work on the model: it waits until nobody else uses it."""
    answering = guarded(work)

    def run(*values: Any) -> str:
        with call_queue.queue_lock:
            return answering(*values)

    return run


def interrupt() -> None:
    """The button "Interrupt" of every sub-tab: the work ends after its present step."""
    shared.state.interrupt()


def erasure_list(tab: Any, label: str, elem_id: str, several: bool = False) -> Any:
    """A list of the library's erasures, read again whenever its sub-tab is opened."""

    def listed() -> list[str]:
        return choices()[1:] if several else choices()

    made = gr.Dropdown(
        listed(), value=None if several else NONE, multiselect=several, label=label, elem_id=f"{PREFIX}_{elem_id}"
    )
    tab.select(lambda: gr.update(choices=listed()), inputs=[], outputs=[made])
    return made


def task_box(name: str) -> Any:
    """Holds the host's task id, which the page's script makes; without it the host shows no progress."""
    return gr.Textbox(visible=False, value="", label=f"{name} task", elem_id=f"{PREFIX}_{name.lower()}_task")


def lines(text: str | None) -> list[str]:
    """The lines of a text field that are not empty."""
    return [line.strip() for line in (text or "").splitlines() if line.strip()]
