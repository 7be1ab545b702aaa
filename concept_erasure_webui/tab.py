"""The tab "Concept Erasure": Erase and Library here, Explore, Report and Purify in files of their own.

One source for gradio 3.41 and 4.40.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
from modules import call_queue, shared

from erasure_core.boundary import ExploreSettings
from erasure_core.concept import Concept
from erasure_core.errors import ErasureError, InvalidSettings
from erasure_core.hosts.webui import WebuiModel
from erasure_core.library import Hardening
from erasure_core.methods import METHODS, find_method

from . import explore_tab, form, jobs, places, purify_tab, report_tab, shelf, show
from .handlers import PREFIX, guarded, interrupt, lines, queued, task_box
from .panel import choices
from .wishes import NONE
from .working import latent_side

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
                fields = _erase()
            with gr.TabItem("Explore", elem_id=f"{PREFIX}_tab_explore") as tab:
                explore_tab.build(tab, fields)
            with gr.TabItem("Report", elem_id=f"{PREFIX}_tab_report") as tab:
                report_tab.build(tab)
            with gr.TabItem("Library", elem_id=f"{PREFIX}_tab_library"):
                _library()
            with gr.TabItem("Purify", elem_id=f"{PREFIX}_tab_purify") as tab:
                purify_tab.build(tab)
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


def _erase() -> explore_tab.Form:
    """The widgets of the sub-tab; returns the fields that exploration fills."""
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
            with gr.Row():
                rounds = gr.Slider(
                    0, jobs.MOST_ROUNDS, value=0, step=1, label="Harden: rounds of search and erase (0: off)",
                    elem_id=f"{PREFIX}_harden",
                    info="After erasing, search for what still reaches the concept and erase that too.",
                )  # fmt: skip
                seconds = gr.Number(60, label="Seconds of each of these searches", elem_id=f"{PREFIX}_harden_seconds")
                preview = gr.Number(0, label="Training steps between two previews (0: none)",
                                    elem_id=f"{PREFIX}_preview_every")  # fmt: skip
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
    start.click(
        call_queue.wrap_gradio_gpu_call(erase, extra_outputs=[""]),
        _js="concept_erasure_submit",
        inputs=[task_box("Erase"), words, instead, keep, method, length, size, rounds, seconds, preview, *values],
        outputs=[last, result],
        show_progress=False,
    )
    stop.click(interrupt, inputs=[], outputs=[])
    look.click(lambda: show.job(jobs.JOBS.shown()), inputs=[], outputs=[last])
    save.click(queued(lambda: jobs.save_stopped().message), inputs=[], outputs=[result])
    discard.click(guarded(lambda: jobs.discard_stopped().message), inputs=[], outputs=[result])
    return explore_tab.Form(words, instead, keep, result)


def about_method(name: str) -> str:
    method = find_method(name)
    return show.message(f"{method.title}: {method.reference}. Ours: {method.status}.")


def _chosen_method(name: str) -> list[Any]:
    return [about_method(name), *(gr.update(visible=other == name) for other in METHODS)]


def erase(task: str, *values: Any) -> list[str]:
    """The button "Erase": returns the last-job view and a closing line."""
    try:
        request = request_of(*values)
    except ErasureError as error:
        return [show.job(jobs.JOBS.shown()), show.message(places.told(error), is_error=True)]
    job = jobs.run_erase(request)
    return [show.job(job), show.message(job.message, is_error=job.status == "failed")]


def request_of(
    words: str,
    instead: str,
    keep: str,
    method: str,
    length: str,
    size: float,
    rounds: float,
    seconds: float,
    preview: float,
    *values: Any,
) -> jobs.Request:
    """What the form asks for.

    Raises:
        ErasureError: something in it cannot be used.
    """
    concept = Concept(tuple(lines(words)), instead.strip() or None, tuple(lines(keep)))
    chosen = find_method(method)
    start, stop = form.offsets()[chosen.name]
    settings = form.settings_of(chosen, values[start:stop], form.LENGTHS.get(length, 1.0))
    try:
        asked, every = int(rounds or 0), int(preview or 0)
        search = ExploreSettings(seconds=float(seconds), seed=settings.seed) if asked else None
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidSettings("Rounds, seconds and preview steps must be numbers.") from error
    hardening = Hardening(asked, search) if search is not None else None
    return jobs.Request(concept, chosen, settings, latent_side(size), hardening, every)


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
        (rename, guarded(shelf.rename), [name, new]),
        (delete, guarded(shelf.delete), [name, sure]),
        (export, queued(shelf.export_lora), [name]),
        (take, queued(lambda file, said: shelf.import_file(_uploaded(file), said)), [given, words]),
        (make, guarded(shelf.save_profile), [profile, files, strength]),
    ):
        button.click(work, inputs=inputs, outputs=[said]).then(now, inputs=[search], outputs=lists)


def _uploaded(file: Any) -> Path | None:
    """gradio 3 gives an object with a name, gradio 4 the path."""
    return None if file is None else Path(getattr(file, "name", file))
