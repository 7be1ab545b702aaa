"""The sub-tab "Explore": which prompts still reach a concept, live while it searches, and back into the Erase form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr
from modules import call_queue

from erasure_core.boundary import ExploreSettings
from erasure_core.boundary.searches import LADDER, LEVELS
from erasure_core.boundary.subject import GUIDANCE
from erasure_core.errors import ErasureError, InvalidSettings

from . import exploring, pages, places, saved, show
from .exploring import FINDINGS, Search
from .handlers import PREFIX, erasure_list, interrupt, lines, task_box
from .subject import stored
from .wishes import NONE, Wish
from .working import latent_side

ABOUT = (
    "Searches for prompts that reach the concept: its own words and their misspellings, every word of the vocabulary, "
    "sentences, and token rows bred for it. A search gives examples, not a proof: what it did not find can leak too. "
    "Nothing that it finds leaves this machine."
)


@dataclass(frozen=True)
class Form:
    """The fields of the Erase form that what was selected goes to."""

    words: Any
    instead: Any
    keep: Any
    said: Any


def build(tab: Any, form: Form) -> None:
    """The widgets of the sub-tab, inside of it."""
    gr.HTML(show.message(ABOUT))
    with gr.Row():
        with gr.Column():
            words = gr.Textbox(
                label="Concept (one word or phrase for each line; empty: what the erasure says)",
                lines=2, elem_id=f"{PREFIX}_explore_words",
            )  # fmt: skip
            erasure = erasure_list(tab, "With this erasure applied (None: the untouched model)", "explore_with")
            strength = gr.Slider(
                0.0, 2.0, value=1.0, step=0.05, label="Strength of that erasure", elem_id=f"{PREFIX}_explore_strength"
            )
            seconds = gr.Slider(
                5,
                900,
                value=60,
                step=5,
                label="Seconds of searching (preparing comes on top: minutes on a CPU)",
                elem_id=f"{PREFIX}_explore_seconds",
            )
            with gr.Accordion("More about the search", open=False, elem_id=f"{PREFIX}_explore_more"):
                keep = gr.Textbox(label="Prompts near it that are meant to stay (one for each line)", lines=2,
                                  elem_id=f"{PREFIX}_explore_keep")  # fmt: skip
                tries = gr.Textbox(label="Prompts of your own to try (one for each line)", lines=2,
                                   elem_id=f"{PREFIX}_explore_tries")  # fmt: skip
                levels = gr.CheckboxGroup(
                    list(LEVELS), value=list(LEVELS), label="Searches", elem_id=f"{PREFIX}_explore_levels",
                    info="; ".join(f"{level.name}: {level.help}" for level in LADDER),
                )  # fmt: skip
                look = gr.Number(48, label="Worst prompts that are painted and looked at",
                                 elem_id=f"{PREFIX}_explore_look")  # fmt: skip
                pictures = gr.Checkbox(
                    False, label="Keep small pictures of them (stored blurred where the concept is sexual or violent)",
                    elem_id=f"{PREFIX}_explore_pictures",
                )  # fmt: skip
                states = gr.Number(8, label="Noisy latents at which prompts are compared",
                                   elem_id=f"{PREFIX}_explore_states")  # fmt: skip
                side = gr.Number(0, label="Side of the explored pictures in pixels (0: the family's own)",
                                 elem_id=f"{PREFIX}_explore_side")  # fmt: skip
                seed = gr.Number(0, label="Seed of the search", elem_id=f"{PREFIX}_explore_seed")
                sensitive = gr.Checkbox(
                    False, label="The concept is explicit, whatever its words say: pictures of it are stored blurred",
                    elem_id=f"{PREFIX}_explore_sensitive",
                )  # fmt: skip
                guidance = gr.Slider(
                    1.0, 30.0, value=GUIDANCE, step=0.5, label="Guidance (CFG) of the pictures that are looked at",
                    elem_id=f"{PREFIX}_explore_guidance",
                )  # fmt: skip
        with gr.Column():
            with gr.Row():
                start = gr.Button("Explore", variant="primary", elem_id=f"{PREFIX}_explore")
                stop = gr.Button("Interrupt, keep what was found", elem_id=f"{PREFIX}_explore_interrupt")
                look_again = gr.Button("Show what was found", elem_id=f"{PREFIX}_explore_show")
            with gr.Column(elem_id=f"{PREFIX}_explore_progress"):
                said = gr.HTML(elem_id=f"{PREFIX}_explore_message")
                table = gr.HTML(elem_id=f"{PREFIX}_explore_candidates")
            live = gr.Button("Refresh the candidates", elem_id=f"{PREFIX}_explore_live")
    plot = gr.HTML(elem_id=f"{PREFIX}_map")
    with gr.Column():  # in a row the button would grow with the list
        selected = gr.Textbox(
            label="Selected on the map, to be erased too (one for each line)", lines=3,
            elem_id=f"{PREFIX}_selected",
        )  # fmt: skip
        harden = gr.Button("Put them into the Erase form", variant="primary", elem_id=f"{PREFIX}_harden_selected")
    wanted = [words, keep, tries, erasure, strength, seconds, levels, look, pictures, states, side, seed, sensitive]
    wanted.append(guidance)
    start.click(
        call_queue.wrap_gradio_gpu_call(explore, extra_outputs=["", ""]),
        _js="concept_erasure_submit_explore",
        inputs=[task_box("Explore"), *wanted],
        outputs=[table, plot, said],
        show_progress=False,
    )
    stop.click(interrupt, inputs=[], outputs=[])
    live.click(so_far, inputs=[], outputs=[table], show_progress=False)
    look_again.click(shown, inputs=[], outputs=[table, plot, said])
    harden.click(
        to_erase_form,
        _js="concept_erasure_to_erase_form",
        inputs=[selected, words, keep, erasure, form.words, form.instead, form.keep],
        outputs=[form.words, form.instead, form.keep, form.said, said],
    )


def explore(task: str, *values: Any) -> list[str]:
    """The button "Explore": returns the table, the map and a closing line."""
    try:
        search = search_of(*values)
    except ErasureError as error:
        return ["", "", show.message(places.told(error), is_error=True)]
    job = exploring.run_explore(search)
    if FINDINGS.found is None:
        return [so_far(), "", show.message(job.message, is_error=job.status == "failed")]
    return [
        pages.candidates(FINDINGS.points()),
        pages.map_frame(saved.showable(FINDINGS.found)),
        show.message(job.message),
    ]


def search_of(
    words: str,
    keep: str,
    tries: str,
    erasure: str | None,
    strength: float,
    seconds: float,
    levels: list[str],
    look: float,
    pictures: bool,
    states: float,
    side: float,
    seed: float,
    sensitive: bool = False,
    guidance: float = GUIDANCE,
) -> Search:
    """What the form asks for.

    Raises:
        ErasureError: something in it cannot be used.
    """
    try:
        settings = ExploreSettings(
            seconds=float(seconds), levels="+".join(levels or ()), pictures=bool(pictures), sensitive=bool(sensitive),
            guidance=float(guidance), look=int(look), states=int(states), seed=int(seed),
        )  # fmt: skip
        wish = Wish(erasure, float(strength), float(strength)) if erasure and erasure != NONE else None
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidSettings(
            "Strength, seconds and guidance of the search must be numbers; pictures, latents and seed whole ones."
        ) from error
    return Search(tuple(lines(words)), tuple(lines(keep)), tuple(lines(tries)), wish, settings, latent_side(side))


def so_far() -> str:
    """The candidates that the running search has found until now."""
    job = FINDINGS.job
    running = job is not None and job.status == "running"
    return pages.candidates(FINDINGS.points(), f"Searching: {job.stage}." if running and job is not None else "")


def shown() -> list[str]:
    """The button "Show what was found": the last exploration, also after a lost connection or a restart."""
    try:
        found, name = FINDINGS.last()
    except ErasureError as error:
        return ["", "", show.message(places.told(error), is_error=True)]
    if found is None:
        return [so_far(), "", show.message("No exploration is finished yet.")]
    where = f"Saved as {name}." if name else "It could not be saved."
    return [pages.candidates(found.points), pages.map_frame(found), show.message(f"{found.summary()} {where}")]


def to_erase_form(
    selected: str, words: str, keep: str, erasure: str | None, old_words: str, instead: str, old_keep: str
) -> list[Any]:
    """The button "Put them into the Erase form": the concept with what was selected, ready to be erased.

    Told here and there: the page changes to the form only where something is selected.
    """
    try:
        extra = lines(selected)
        if not extra:
            raise InvalidSettings("Nothing is selected; select points on the map, or write words into the field.")
        manifest = stored(Wish(erasure)).manifest if erasure and erasure != NONE else None
        own = lines(words) or (list(manifest.words) if manifest else []) or lines(old_words)
        kept = [*lines(keep), *(manifest.keep if manifest else ()), *lines(old_keep)]
    except ErasureError as error:
        said = show.message(places.told(error), is_error=True)
        return [old_words, instead, old_keep, said, said]
    whole = list(dict.fromkeys([*own, *extra]))
    other = (manifest.alternative or "") if manifest and not instead.strip() else instead
    said = show.message(
        f"{len(whole)} words and phrases are in the form now, {len(extra)} of them selected on the map."
    )
    return ["\n".join(whole), other, "\n".join(dict.fromkeys(kept)), said, said]
