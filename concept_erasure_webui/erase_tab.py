"""The sub-tab "Erase": what to erase and how, all settings; progress, and what becomes of an interrupt."""

from __future__ import annotations

from typing import Any

import gradio as gr
from modules import call_queue

from erasure_core.boundary import ExploreSettings
from erasure_core.concept import Concept
from erasure_core.concept_pictures import reads_pictures
from erasure_core.effort import BALANCED, EFFORTS, effort_of, not_defaults
from erasure_core.errors import ErasureError, InvalidSettings
from erasure_core.making import Hardening
from erasure_core.methods import METHODS, RECOMMENDED, find_method
from erasure_core.presets import PRESETS

from . import explore_tab, form, given_pictures, jobs, places, show
from .handlers import PREFIX, guarded, interrupt, lines, queued, task_box
from .wishes import NONE
from .working import latent_side

LIVE_STYLE = (
    f"<style>#{PREFIX}_live {{ position: relative }} #{PREFIX}_live:has(.livePreview) {{ height: 320px }}</style>"
)
"""The host lays its live preview over all of the element that it is given, so that is one of its own."""


def build(blocks: Any) -> explore_tab.Form:
    """The widgets of the sub-tab, inside of it, on the page ``blocks``; returns the fields that exploration fills."""
    with gr.Row():
        with gr.Column():
            words = gr.Textbox(label="Erase (one word or phrase for each line)", lines=3, elem_id=f"{PREFIX}_words")
            instead = gr.Textbox(label="Paint instead (may be empty)", elem_id=f"{PREFIX}_instead")
            keep = gr.Textbox(label="Prompts to keep (one for each line)", lines=4, elem_id=f"{PREFIX}_keep")
            called = gr.Textbox(label="Name of the file (empty: the first word)", elem_id=f"{PREFIX}_name")
            pictures = gr.File(label="Pictures of it, for the methods that read them (may be empty)",
                               file_count="multiple", file_types=["image"],
                               elem_id=f"{PREFIX}_concept_pictures")  # fmt: skip
            with gr.Row():
                method = gr.Dropdown(list(METHODS), value=RECOMMENDED, label="Method",
                                     elem_id=f"{PREFIX}_method")  # fmt: skip
                preset = gr.Dropdown([NONE, *PRESETS], value=NONE, label="Preset for this kind of concept",
                                     elem_id=f"{PREFIX}_preset")  # fmt: skip
                effort = gr.Dropdown(list(EFFORTS), value=BALANCED, label="Effort: work and memory of the training",
                                     elem_id=f"{PREFIX}_effort")  # fmt: skip
                length = gr.Dropdown(list(form.LENGTHS), value="As set", label="Length", elem_id=f"{PREFIX}_length")
                size = gr.Number(0, label="Side of the training pictures in pixels (0: the family's own)",
                                 elem_id=f"{PREFIX}_size")  # fmt: skip
            # Not in a row: beside others gradio 3 leaves a slider a few characters.
            rounds = gr.Slider(
                0, jobs.MOST_ROUNDS, value=0, step=1, label="Harden: rounds of search and erase (0: off)",
                elem_id=f"{PREFIX}_harden",
                info="After erasing, search for what still reaches the concept and erase that too.",
            )  # fmt: skip
            with gr.Row():
                seconds = gr.Number(60, label="Seconds of each of these searches", elem_id=f"{PREFIX}_harden_seconds")
                preview = gr.Number(0, label="Training steps between two previews (0: none)",
                                    elem_id=f"{PREFIX}_preview_every")  # fmt: skip
            compare = gr.Checkbox(True, label="Then paint the concept and a kept prompt without and with it",
                                  elem_id=f"{PREFIX}_compare")  # fmt: skip
            about = gr.HTML(about_method(RECOMMENDED, NONE), elem_id=f"{PREFIX}_about")
            values: list[Any] = []
            groups = []
            for name, known in METHODS.items():
                with (
                    gr.Column(visible=name == RECOMMENDED) as group,
                    gr.Accordion(f"Settings of {known.title}", open=False, elem_id=f"{PREFIX}_settings_{name}"),
                ):
                    values += form.widgets(known)
                groups.append(group)
        with gr.Column():
            with gr.Row():
                start = gr.Button("Erase", variant="primary", elem_id=f"{PREFIX}_start")
                stop = gr.Button("Interrupt", elem_id=f"{PREFIX}_interrupt")
            stopped = gr.Dropdown(jobs.unfinished(), value=None, label="Interrupted trainings (empty: the newest)",
                                  elem_id=f"{PREFIX}_unfinished")  # fmt: skip
            with gr.Row():
                save = gr.Button("Save the interrupted one as it is", elem_id=f"{PREFIX}_save_unfinished")
                discard = gr.Button("Discard it", elem_id=f"{PREFIX}_discard")
            look = gr.Button("Show the last job", size="sm", elem_id=f"{PREFIX}_show_last_job")
            with gr.Column(elem_id=f"{PREFIX}_progress"):
                result = gr.HTML(elem_id=f"{PREFIX}_result")
                last = gr.HTML(show.job(jobs.JOBS.shown()), elem_id=f"{PREFIX}_last_job")
            with gr.Column(elem_id=f"{PREFIX}_live"):
                gr.HTML(LIVE_STYLE)
    method.change(_chosen_method, inputs=[method, preset, effort], outputs=[about, *groups, effort])
    for choice in (preset, effort):
        choice.change(about_method, inputs=[method, preset, effort], outputs=[about])
    # API clients send these by place: what is new goes behind what was there.
    head = [task_box("Erase"), words, instead, keep, method, length, size, rounds, seconds, preview]
    ended = start.click(
        call_queue.wrap_gradio_gpu_call(erase, extra_outputs=[""]),
        _js="concept_erasure_submit",
        inputs=[*head, *values, preset, pictures, called, compare, effort],
        outputs=[last, result],
        show_progress=False,
    )
    stop.click(interrupt, inputs=[], outputs=[])
    blocks.load(now, inputs=[], outputs=[last, stopped])  # the page was built when the server was started
    look.click(now, inputs=[], outputs=[last, stopped])
    discarded = discard.click(guarded(jobs.discard_stopped), inputs=[stopped], outputs=[result])
    saved = save.click(queued(jobs.save_stopped), inputs=[stopped], outputs=[result])
    for event in (ended, discarded):
        event.then(_unfinished, inputs=[], outputs=[stopped])
    for event in (ended, saved):
        event.then(None, _js="concept_erasure_refresh_panels", inputs=[], outputs=[])
    return explore_tab.Form(words, instead, keep, result)


def now() -> list[Any]:
    """The last job and the interrupted ones as they are now."""
    return [show.job(jobs.JOBS.shown()), _unfinished()]


def _unfinished() -> Any:
    return gr.update(choices=jobs.unfinished(), value=None)


def about_method(name: str, preset: str | None, effort: str | None = None) -> str:
    method = find_method(name)
    reads = "" if reads_pictures(method) else " It does not read pictures."
    chosen = filter(None, (form.about_preset(preset, method), form.about_effort(effort)))
    said = show.message(f"{method.title}: {method.reference}. Ours: {method.status}.{reads}")
    return "".join([said, *map(show.message, chosen)])


def _chosen_method(name: str, preset: str | None, effort: str | None = None) -> list[Any]:
    """What method and effort do, which settings are shown, and whether there are efforts."""
    trains = find_method(name).solve is None
    # What is not seen must not be chosen.
    efforts = gr.update(visible=True) if trains else gr.update(visible=False, value=BALANCED)
    said = about_method(name, preset, effort if trains else None)
    return [said, *(gr.update(visible=other == name) for other in METHODS), efforts]


def erase(task: str, *values: Any) -> list[str]:
    """The button "Erase": returns the last-job view, which tells how it ended, and why nothing was begun."""
    try:
        request = request_of(*values)
    except ErasureError as error:
        return [show.job(jobs.JOBS.shown()), show.message(places.told(error), is_error=True)]
    return [show.job(jobs.run_erase(request)), ""]


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

    Args:
        words, instead, keep: lines of the concept.
        method: by name.
        length: a choice of ``form.LENGTHS``.
        size: of the training pictures, pixels.
        rounds, seconds: of hardening.
        preview: steps between two previews.
        values: the settings of all methods in a row, then, if they are sent, preset, pictures, the file's name,
            whether to paint before and after, and the effort.

    Raises:
        ErasureError: something in it cannot be used.
    """
    own, added = values[: form.count()], values[form.count() :]
    preset, files, name, compares, effort = (*added, *[None] * 5)[:5]
    concept = Concept(tuple(lines(words)), instead.strip() or None, tuple(lines(keep)))
    chosen = find_method(method)
    start, stop = form.offsets()[chosen.name]
    kind = None if preset in (None, "", NONE) else str(preset)
    settings = form.settings_of(chosen, own[start:stop], form.LENGTHS.get(length, 1.0), kind)
    work = effort_of(None if effort in (None, "", BALANCED) else str(effort), chosen, not_defaults(settings))
    try:
        asked, every = int(rounds or 0), int(preview or 0)
        search = ExploreSettings(seconds=float(seconds), seed=settings.seed) if asked else None
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidSettings("Rounds, seconds and preview steps must be numbers.") from error
    hardening = Hardening(asked, search) if search is not None else None
    shown = given_pictures.from_uploads(files)
    return jobs.Request(
        concept, chosen, settings, latent_side(size), hardening, every, shown, str(name or ""), bool(compares), work
    )
