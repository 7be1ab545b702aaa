"""The tab "Concept Erasure": the Library here, the other sub-tabs in files of their own.

One source for gradio 3.41 and 4.40.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from modules import sd_models, shared

from erasure_core.errors import ErasureError
from erasure_core.hosts.webui import WebuiModel, title_of

from . import erase_tab, explore_tab, places, purify_tab, report_tab, shelf, show
from .handlers import PREFIX, guarded, queued
from .panel import choices
from .wishes import NONE
from .working import chosen_checkpoint

HONEST = (
    "Erasing weights does not delete knowledge: words that nobody named may still reach the concept, and whoever has "
    "the weights can undo it. A finished erasure is a file; the loaded model stays as it is until you apply one."
)


def tabs() -> list[tuple[Any, str, str]]:
    """For ``on_ui_tabs``."""
    with gr.Blocks(analytics_enabled=False) as blocks:
        gr.HTML(show.message(HONEST))
        with gr.Row():
            loaded = gr.HTML(model_line_at_start(), elem_id=f"{PREFIX}_model")
            refresh = gr.Button("Refresh", scale=0, elem_id=f"{PREFIX}_refresh_model")
            refresh.click(model_line, inputs=[], outputs=[loaded])
            blocks.load(model_line_at_start, inputs=[], outputs=[loaded])
        with gr.Tabs(elem_id=f"{PREFIX}_tabs"):
            with gr.TabItem("Erase", elem_id=f"{PREFIX}_tab_erase"):
                fields = erase_tab.build(blocks)
            with gr.TabItem("Explore", elem_id=f"{PREFIX}_tab_explore") as tab:
                explore_tab.build(tab, fields)
            with gr.TabItem("Report", elem_id=f"{PREFIX}_tab_report") as tab:
                report_tab.build(tab)
            with gr.TabItem("Library", elem_id=f"{PREFIX}_tab_library") as tab:
                _library(blocks, tab)
            with gr.TabItem("Purify", elem_id=f"{PREFIX}_tab_purify") as tab:
                purify_tab.build(tab)
    return [(blocks, "Concept Erasure", PREFIX)]


def model_line_at_start() -> str:
    """As ``model_line`` when the page is built or opened, which must not wait for the model: A1111 loads it when it is
    asked for ``shared.sd_model``."""
    if sd_models.model_data.sd_model is None:
        return show.message(f"The model is not loaded yet; press Refresh. {_profile_line()}")
    return model_line()


def model_line() -> str:
    """What is loaded now, or why it cannot be erased from; and what is loaded before any work, if that is another."""
    chosen, loaded = chosen_checkpoint(), getattr(shared.sd_model, "sd_checkpoint_info", None)
    if chosen is not None and chosen.filename != getattr(loaded, "filename", None):
        return show.message(f"Chosen: {title_of(chosen)}. It is loaded when it is needed. {_profile_line()}")
    try:
        model = WebuiModel(shared.sd_model)
    except ErasureError as error:
        return show.message(places.told(error), is_error=True)
    return show.message(f"Loaded: {model.title}, {model.family}, {model.schedule.prediction}. {_profile_line()}")


def _profile_line() -> str:
    pinned = " (pinned by the operator)" if places.locked_profile() is not None else ""
    return f"Safety profile: {places.profile_name()}{pinned}."


def _library(blocks: Any, tab: Any) -> None:
    search = gr.Textbox(label="Search", elem_id=f"{PREFIX}_search")
    table = gr.HTML(show.library(places.library()), elem_id=f"{PREFIX}_library")
    with gr.Row():
        name = gr.Dropdown(choices(), value=NONE, label="Erasure", elem_id=f"{PREFIX}_chosen")
        refresh = gr.Button("Refresh the list", scale=0, elem_id=f"{PREFIX}_refresh")
        check = gr.Button("Does it fit?", scale=0, elem_id=f"{PREFIX}_check")
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
        with gr.Column():
            words = gr.Textbox(label="It erases (if the file does not say)", elem_id=f"{PREFIX}_import_words")
            take = gr.Button("Import", elem_id=f"{PREFIX}_import")
    with gr.Row():
        profile = gr.Textbox(label="Name of a safety profile", elem_id=f"{PREFIX}_profile_name")
        files = gr.Dropdown(choices()[1:], multiselect=True, label="Its erasures", elem_id=f"{PREFIX}_profile_files")
        strength = gr.Slider(
            0.05, 2.0, value=1.0, step=0.05, label="Their strength", elem_id=f"{PREFIX}_profile_strength"
        )
        make = gr.Button("Make the profile", elem_id=f"{PREFIX}_profile_make")
    chosen, lists = [search, name, files], [table, name, files]
    for event in (refresh.click, tab.select, blocks.load):
        event(_lists, inputs=chosen, outputs=lists)
    search.change(lambda text: show.library(places.library(), text), inputs=[search], outputs=[table])
    check.click(queued(shelf.check), inputs=[name], outputs=[said])
    for button, work, inputs in (
        (rename, guarded(shelf.rename), [name, new]),
        (delete, guarded(shelf.delete), [name, sure]),
        (export, queued(shelf.export_lora), [name]),
        (take, queued(lambda file, said: shelf.import_file(_uploaded(file), said)), [given, words]),
        (make, guarded(shelf.save_profile), [profile, files, strength]),
    ):
        done = button.click(work, inputs=inputs, outputs=[said])
        # What was ticked for one file must not delete the next.
        done.then(lambda *now: [*_lists(*now), False], inputs=chosen, outputs=[*lists, sure])
        done.then(None, _js="concept_erasure_refresh_panels", inputs=[], outputs=[])


def _lists(text: str, name: str | None, files: Sequence[str] | None) -> list[Any]:
    """Table and lists as they are now; what was deleted or renamed is chosen no longer."""
    listed = choices()
    kept = [file for file in files or () if file in listed]
    return [
        show.library(places.library(), text),
        gr.update(choices=listed, value=name if name in listed else NONE),
        gr.update(choices=listed[1:], value=kept),
    ]


def _uploaded(file: Any) -> Path | None:
    """gradio 3 gives an object with a name, gradio 4 the path."""
    return None if file is None else Path(getattr(file, "name", file))
