"""The tab "Concept Erasure": Erase, Library, Purify. One source for gradio 3.41 and 4.40."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
from modules import call_queue, shared

from erasure_core.concept import Concept
from erasure_core.errors import ErasureError
from erasure_core.hosts.webui import WebuiModel
from erasure_core.library import SUFFIX
from erasure_core.methods import METHODS, find_method

from . import form, jobs, places, shelf, show
from .panel import choices
from .wishes import NONE, Wish

PREFIX = "concept_erasure"
HONEST = (
    "Erasing weights does not delete knowledge: words that nobody named may still reach the concept, and whoever has "
    "the weights can undo it. A finished erasure is a file; the loaded model stays as it is until you apply one."
)


def tabs() -> list[tuple[Any, str, str]]:
    """For ``on_ui_tabs``."""
    with gr.Blocks(analytics_enabled=False) as blocks:
        gr.HTML(show.message(HONEST))
        with gr.Row():
            loaded = gr.HTML(model_line(), elem_id=f"{PREFIX}_model")
            refresh = gr.Button("Refresh", elem_id=f"{PREFIX}_refresh_model")
            refresh.click(model_line, inputs=[], outputs=[loaded])
        with gr.Tabs(elem_id=f"{PREFIX}_tabs"):
            with gr.TabItem("Erase", elem_id=f"{PREFIX}_tab_erase"):
                _erase()
            with gr.TabItem("Library", elem_id=f"{PREFIX}_tab_library"):
                _library()
            with gr.TabItem("Purify", elem_id=f"{PREFIX}_tab_purify"):
                _purify()
    return [(blocks, "Concept Erasure", PREFIX)]


def model_line() -> str:
    """What is loaded now, or why it cannot be erased from."""
    try:
        model = WebuiModel(shared.sd_model)
    except ErasureError as error:
        return show.message(places.told(error), is_error=True)
    profile = places.profile_name()
    pinned = " (pinned by the operator)" if places.locked_profile() else ""
    return show.message(
        f"Loaded: {model.title}, {model.family}, {model.schedule.prediction}. Safety profile: {profile}{pinned}."
    )


def _guarded(work: Callable[..., str]) -> Callable[..., str]:
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


def _queued(work: Callable[..., str]) -> Callable[..., str]:
    """As ``_guarded``, for work on the model: it waits until nobody else uses it."""
    guarded = _guarded(work)

    def run(*values: Any) -> str:
        with call_queue.queue_lock:
            return guarded(*values)

    return run


def _erase() -> None:
    with gr.Row():
        with gr.Column():
            words = gr.Textbox(label="Erase (one word or phrase for each line)", lines=3, elem_id=f"{PREFIX}_words")
            instead = gr.Textbox(label="Paint instead (may be empty)", elem_id=f"{PREFIX}_instead")
            keep = gr.Textbox(label="Prompts to keep (one for each line)", lines=4, elem_id=f"{PREFIX}_keep")
            with gr.Row():
                method = gr.Dropdown(list(METHODS), value="closed_form", label="Method",
                                     elem_id=f"{PREFIX}_method")  # fmt: skip
                length = gr.Dropdown(list(form.LENGTHS), value="As set", label="Length", elem_id=f"{PREFIX}_length")
                size = gr.Number(0, label="Side of the training pictures in pixels (0: the family's own)",
                                 elem_id=f"{PREFIX}_size")  # fmt: skip
            about = gr.HTML(about_method("closed_form"), elem_id=f"{PREFIX}_about")
            values: list[Any] = []
            groups = []
            for name, known in METHODS.items():
                with (
                    gr.Column(visible=name == "closed_form") as group,
                    gr.Accordion(f"Settings of {known.title}", open=False, elem_id=f"{PREFIX}_settings_{name}"),
                ):
                    values += form.widgets(known)
                groups.append(group)
        with gr.Column():
            with gr.Row():
                start = gr.Button("Erase", variant="primary", elem_id=f"{PREFIX}_start")
                stop = gr.Button("Interrupt", elem_id=f"{PREFIX}_interrupt")
            with gr.Row():
                save = gr.Button("Save the interrupted one as it is", elem_id=f"{PREFIX}_save_unfinished")
                discard = gr.Button("Discard it", elem_id=f"{PREFIX}_discard")
            with gr.Column(elem_id=f"{PREFIX}_progress"):
                result = gr.HTML(elem_id=f"{PREFIX}_result")
                last = gr.HTML(show.job(jobs.JOBS.shown()), elem_id=f"{PREFIX}_last_job")
            look = gr.Button("Show the last job", elem_id=f"{PREFIX}_show_last_job")
    method.change(_chosen_method, inputs=[method], outputs=[about, *groups])
    task = gr.Textbox(visible=False, value="", label="Task", elem_id=f"{PREFIX}_task")
    start.click(
        call_queue.wrap_gradio_gpu_call(erase, extra_outputs=[""]),
        _js="concept_erasure_submit",
        inputs=[task, words, instead, keep, method, length, size, *values],
        outputs=[last, result],
        show_progress=False,
    )
    stop.click(lambda: shared.state.interrupt(), inputs=[], outputs=[])
    look.click(lambda: show.job(jobs.JOBS.shown()), inputs=[], outputs=[last])
    save.click(_queued(lambda: jobs.save_stopped().message), inputs=[], outputs=[result])
    discard.click(_guarded(lambda: jobs.discard_stopped().message), inputs=[], outputs=[result])


def about_method(name: str) -> str:
    method = find_method(name)
    return show.message(f"{method.title}: {method.reference}. Ours: {method.status}.")


def _chosen_method(name: str) -> list[Any]:
    return [about_method(name), *(gr.update(visible=other == name) for other in METHODS)]


def erase(
    task: str, words: str, instead: str, keep: str, method: str, length: str, size: float, *values: Any
) -> list[str]:
    """The button "Erase": returns the last-job view and a closing line."""
    try:
        request = request_of(words, instead, keep, method, length, size, values)
    except ErasureError as error:
        return [show.job(jobs.JOBS.shown()), show.message(places.told(error), is_error=True)]
    job = jobs.run_erase(request)
    return [show.job(job), show.message(job.message, is_error=job.status == "failed")]


def request_of(
    words: str, instead: str, keep: str, method: str, length: str, size: float, values: tuple[Any, ...]
) -> jobs.Request:
    """What the form asks for.

    Raises:
        ErasureError: something in it cannot be used.
    """
    concept = Concept(tuple(_lines(words)), instead.strip() or None, tuple(_lines(keep)))
    chosen = find_method(method)
    start, stop = form.offsets()[chosen.name]
    settings = form.settings_of(chosen, values[start:stop], form.LENGTHS.get(length, 1.0))
    return jobs.Request(concept, chosen, settings, max(8, int(size) // 8) if size else None)


def _lines(text: str) -> list[str]:
    return [line.strip() for line in (text or "").splitlines() if line.strip()]


def _library() -> None:
    search = gr.Textbox(label="Search", elem_id=f"{PREFIX}_search")
    table = gr.HTML(show.library(places.library()), elem_id=f"{PREFIX}_library")
    with gr.Row():
        name = gr.Dropdown(choices(), value=NONE, label="Erasure", elem_id=f"{PREFIX}_chosen")
        refresh = gr.Button("Refresh the list", elem_id=f"{PREFIX}_refresh")
    said = gr.HTML(elem_id=f"{PREFIX}_library_message")
    with gr.Row():
        new = gr.Textbox(label="New name", elem_id=f"{PREFIX}_new_name")
        rename = gr.Button("Rename", elem_id=f"{PREFIX}_rename")
        sure = gr.Checkbox(False, label="Yes, delete it for good", elem_id=f"{PREFIX}_sure")
        delete = gr.Button("Delete", elem_id=f"{PREFIX}_delete")
        export = gr.Button("Export as plain LoRA", elem_id=f"{PREFIX}_export")
    with gr.Row():
        given = gr.File(label="Import (.safetensors: an erasure, a LoRA, or ESD, UCE or similar weights)",
                        elem_id=f"{PREFIX}_import_file")  # fmt: skip
        words = gr.Textbox(label="It erases (if the file does not say)", elem_id=f"{PREFIX}_import_words")
        take = gr.Button("Import", elem_id=f"{PREFIX}_import")
    with gr.Row():
        profile = gr.Textbox(label="Name of a safety profile", elem_id=f"{PREFIX}_profile_name")
        files = gr.Dropdown(choices()[1:], multiselect=True, label="Its erasures", elem_id=f"{PREFIX}_profile_files")
        strength = gr.Slider(
            0.05, 2.0, value=1.0, step=0.05, label="Their strength", elem_id=f"{PREFIX}_profile_strength"
        )
        make = gr.Button("Make the profile", elem_id=f"{PREFIX}_profile_make")
    lists = [table, name, files]

    def now(text: str) -> list[Any]:
        return [show.library(places.library(), text), gr.update(choices=choices()), gr.update(choices=choices()[1:])]

    refresh.click(now, inputs=[search], outputs=lists)
    search.change(lambda text: show.library(places.library(), text), inputs=[search], outputs=[table])
    for button, work, inputs in (
        (rename, _guarded(shelf.rename), [name, new]),
        (delete, _guarded(shelf.delete), [name, sure]),
        (export, _queued(shelf.export_lora), [name]),
        (take, _queued(lambda file, said: shelf.import_file(_uploaded(file), said)), [given, words]),
        (make, _guarded(shelf.save_profile), [profile, files, strength]),
    ):
        button.click(work, inputs=inputs, outputs=[said]).then(now, inputs=[search], outputs=lists)


def _uploaded(file: Any) -> Path | None:
    """gradio 3 gives an object with a name, gradio 4 the path."""
    return None if file is None else Path(getattr(file, "name", file))


def _purify() -> None:
    gr.HTML(show.message("Follows a picture back to noise and paints it again with an erasure applied."))
    with gr.Row():
        with gr.Column():
            picture = gr.Image(label="Picture", type="pil", elem_id=f"{PREFIX}_picture")
            caption = gr.Textbox(label="What it shows, the concept included", elem_id=f"{PREFIX}_caption")
            name = gr.Dropdown(choices(), value=NONE, label="Take away", elem_id=f"{PREFIX}_purify_with")
            share = gr.Slider(0.1, 1.0, value=0.8, step=0.05, label="Share of the way back to noise",
                              elem_id=f"{PREFIX}_share")  # fmt: skip
            steps = gr.Slider(
                5, 100, value=50, step=1, label="Steps of the whole way", elem_id=f"{PREFIX}_purify_steps"
            )
            guidance = gr.Slider(1.0, 15.0, value=5.0, step=0.5, label="Guidance", elem_id=f"{PREFIX}_guidance")
            start = gr.Button("Purify", variant="primary", elem_id=f"{PREFIX}_purify")
        with gr.Column(elem_id=f"{PREFIX}_purify_progress"):
            gallery = gr.Gallery(label="Purified", elem_id=f"{PREFIX}_gallery")
            said = gr.HTML(elem_id=f"{PREFIX}_purify_message")
    task = gr.Textbox(visible=False, value="", label="Purify task", elem_id=f"{PREFIX}_purify_task")
    start.click(
        call_queue.wrap_gradio_gpu_call(purify, extra_outputs=[[]]),
        _js="concept_erasure_submit_purify",
        inputs=[task, picture, caption, name, steps, guidance, share],
        outputs=[gallery, said],
        show_progress=False,
    )


def purify(
    task: str, picture: Any, caption: str, name: str | None, steps: float, guidance: float, share: float
) -> list[Any]:
    """The button "Purify": returns pictures and a closing line."""
    try:
        wish = Wish(shelf.chosen(name).name.removesuffix(SUFFIX))
        made = jobs.run_purify(picture, caption, [wish], int(steps), guidance, share)
    except ErasureError as error:
        return [[], show.message(places.told(error), is_error=True)]
    return [made, show.message("Purified.")]
