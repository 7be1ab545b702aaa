"""The sub-tab "Report": what erasures leak and what else they harm, side by side, on the loaded model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import gradio as gr
from modules import call_queue

from erasure_core.boundary.report import ReportSettings
from erasure_core.boundary.report_page import report_page
from erasure_core.boundary.subject import GUIDANCE
from erasure_core.errors import ErasureError, InvalidSettings

from . import pages, places, reporting, saved, show
from .handlers import PREFIX, erasure_list, interrupt, lines, task_box
from .reporting import Measurement
from .wishes import Wish
from .working import latent_side

ABOUT = (
    "Measures, on the loaded model, what still reaches the concept and what else was changed. It does not withstand an "
    "attacker who has the weights, and a search that finds nothing is no proof that nothing leaks."
)


def build(tab: Any) -> None:
    """The widgets of the sub-tab, inside of it."""
    gr.HTML(show.message(ABOUT))
    with gr.Row():
        with gr.Column():
            erasures = erasure_list(tab, "Erasures to measure, side by side", "report_erasures", several=True)
            strength = gr.Slider(0.0, 2.0, value=1.0, step=0.05, label="Strength of the measured erasures",
                                 elem_id=f"{PREFIX}_report_strength")  # fmt: skip
            seconds = gr.Slider(
                5, 900, value=60, step=5, elem_id=f"{PREFIX}_report_seconds",
                label="Seconds of searching for each erasure (preparing comes on top: minutes on a CPU)",
            )  # fmt: skip
            pictures = gr.Checkbox(not places.is_in_force(), label="Pictures before and after, same seeds",
                                   elem_id=f"{PREFIX}_report_pictures")  # fmt: skip
            with gr.Accordion("More about the measurement", open=False, elem_id=f"{PREFIX}_report_more"):
                words = gr.Textbox(
                    label="Concept to measure (one word or phrase for each line; empty: what the erasure says)",
                    lines=2, elem_id=f"{PREFIX}_report_words",
                )  # fmt: skip
                keep = gr.Textbox(label="Prompts that should still be painted (one for each line)", lines=2,
                                  elem_id=f"{PREFIX}_report_keep")  # fmt: skip
                tries = gr.Textbox(label="Prompts that should not reach it any more (one for each line)", lines=2,
                                   elem_id=f"{PREFIX}_report_tries")  # fmt: skip
                explicit = gr.Checkbox(
                    False, label="Show blurred pictures of a concept that is sexual or violent",
                    elem_id=f"{PREFIX}_report_explicit",
                )  # fmt: skip
                states = gr.Number(8, label="Noisy latents at which the report compares prompts",
                                   elem_id=f"{PREFIX}_report_states")  # fmt: skip
                steps = gr.Number(20, label="Sampling steps of the report's pictures",
                                  elem_id=f"{PREFIX}_report_steps")  # fmt: skip
                side = gr.Number(0, label="Side of the report's pictures in pixels (0: the family's own)",
                                 elem_id=f"{PREFIX}_report_side")  # fmt: skip
                seed = gr.Number(0, label="Seed of the report", elem_id=f"{PREFIX}_report_seed")
                merge = gr.Checkbox(False, label="Write the figures into the erasures' own descriptions",
                                    elem_id=f"{PREFIX}_report_merge")  # fmt: skip
                sensitive = gr.Checkbox(
                    False, label="The measured concept is explicit, whatever its words say",
                    elem_id=f"{PREFIX}_report_sensitive",
                )  # fmt: skip
                guidance = gr.Slider(1.0, 30.0, value=GUIDANCE, step=0.5, label="Guidance of the report's pictures",
                                     elem_id=f"{PREFIX}_report_guidance")  # fmt: skip
        with gr.Column():
            with gr.Row():
                start = gr.Button("Make the report card", variant="primary", elem_id=f"{PREFIX}_report")
                stop = gr.Button("Interrupt the measurement", elem_id=f"{PREFIX}_report_interrupt")
            with gr.Column(elem_id=f"{PREFIX}_report_progress"):
                said = gr.HTML(elem_id=f"{PREFIX}_report_message")
            with gr.Row():
                names = saved.names(saved.REPORTS)
                earlier = gr.Dropdown(names, value=next(iter(names), None), label="Saved reports",
                                      elem_id=f"{PREFIX}_report_saved")  # fmt: skip
                again = gr.Button("Show this report", elem_id=f"{PREFIX}_report_show")
            tab.select(lambda: gr.update(choices=saved.names(saved.REPORTS)), inputs=[], outputs=[earlier])
    page = gr.HTML(elem_id=f"{PREFIX}_report_page")
    # API clients send these by place: what is new goes behind what was there.
    wanted = [erasures, strength, words, keep, tries, seconds, pictures, explicit, states, steps, side, seed, merge]
    wanted += [sensitive, guidance]
    start.click(
        call_queue.wrap_gradio_gpu_call(measure, extra_outputs=[""]),
        _js="concept_erasure_submit_report",
        inputs=[task_box("Report"), *wanted],
        outputs=[page, said],
        show_progress=False,
    ).then(lambda: gr.update(choices=saved.names(saved.REPORTS)), inputs=[], outputs=[earlier])
    stop.click(interrupt, inputs=[], outputs=[])
    again.click(shown, inputs=[earlier], outputs=[page, said])


def measure(task: str, *values: Any) -> list[str]:
    """The button "Make the report card": returns the page and a closing line."""
    try:
        wanted = measurement_of(*values)
    except ErasureError as error:
        return ["", show.message(places.told(error), is_error=True)]
    job, card = reporting.run_report(wanted)
    said = show.message(job.message, is_error=job.status == "failed")
    if card is None:
        return ["", said]
    return [pages.report_frame(report_page(card), card.to_json()), said + pages.verdicts(card)]


def measurement_of(
    erasures: Sequence[str] | None,
    strength: float,
    words: str,
    keep: str,
    tries: str,
    seconds: float,
    pictures: bool,
    explicit: bool,
    states: float,
    steps: float,
    side: float,
    seed: float,
    merge: bool,
    sensitive: bool = False,
    guidance: float = GUIDANCE,
) -> Measurement:
    """What the form asks for.

    Raises:
        ErasureError: something in it cannot be used.
    """
    shown = {"pictures": bool(pictures), "explicit": bool(explicit), "sensitive": bool(sensitive)}
    try:
        numbers = {"states": int(states), "steps": int(steps), "seed": int(seed)}
        settings = ReportSettings(seconds=float(seconds), guidance=float(guidance), **shown, **numbers)
        wishes = tuple(Wish(name, float(strength), float(strength)) for name in erasures or ())
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidSettings(
            "Strength, seconds and guidance of the report must be numbers; latents, steps and seed whole ones."
        ) from error
    return Measurement(
        wishes, tuple(lines(words)), tuple(lines(keep)), tuple(lines(tries)), settings, latent_side(side), bool(merge)
    )


def shown(name: str | None) -> list[str]:
    """The button "Show this report": one that was saved before, also after a lost connection or a restart."""
    try:
        page, figures = saved.read_report(name)
    except ErasureError as error:
        return ["", show.message(places.told(error), is_error=True)]
    return [pages.report_frame(page, json.dumps(figures, ensure_ascii=False, indent=1)), show.message(f"{name}.")]
