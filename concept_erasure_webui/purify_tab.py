"""The sub-tab "Purify": takes a concept out of a given picture."""

from __future__ import annotations

from typing import Any

import gradio as gr
from modules import call_queue

from erasure_core.errors import ErasureError
from erasure_core.library import SUFFIX

from . import places, purifying, shelf, show
from .handlers import PREFIX, erasure_list, interrupt, task_box
from .wishes import Wish


def build(tab: Any) -> None:
    """The widgets of the sub-tab, inside of it."""
    gr.HTML(show.message("Follows a picture back to noise and paints it again with an erasure applied."))
    with gr.Row():
        with gr.Column():
            picture = gr.Image(label="Picture", type="pil", elem_id=f"{PREFIX}_picture")
            caption = gr.Textbox(label="What it shows, the concept included", elem_id=f"{PREFIX}_caption")
            name = erasure_list(tab, "Take away", "purify_with")
            share = gr.Slider(0.1, 1.0, value=0.8, step=0.05, label="Share of the way back to noise",
                              elem_id=f"{PREFIX}_share")  # fmt: skip
            steps = gr.Slider(
                5, 100, value=50, step=1, label="Steps of the whole way", elem_id=f"{PREFIX}_purify_steps"
            )
            guidance = gr.Slider(1.0, 15.0, value=5.0, step=0.5, label="Guidance", elem_id=f"{PREFIX}_guidance")
            with gr.Row():
                start = gr.Button("Purify", variant="primary", elem_id=f"{PREFIX}_purify")
                stop = gr.Button("Interrupt the purifying", elem_id=f"{PREFIX}_purify_interrupt")
        with gr.Column(elem_id=f"{PREFIX}_purify_progress"):
            gallery = gr.Gallery(label="Purified", elem_id=f"{PREFIX}_gallery")
            said = gr.HTML(elem_id=f"{PREFIX}_purify_message")
    start.click(
        call_queue.wrap_gradio_gpu_call(purify, extra_outputs=[[]]),
        _js="concept_erasure_submit_purify",
        inputs=[task_box("Purify"), picture, caption, name, steps, guidance, share],
        outputs=[gallery, said],
        show_progress=False,
    )
    stop.click(interrupt, inputs=[], outputs=[])


def purify(
    task: str, picture: Any, caption: str, name: str | None, steps: float, guidance: float, share: float
) -> list[Any]:
    """The button "Purify": returns pictures and a closing line."""
    try:
        shelf.chosen(name)
        wish = Wish(str(name).removesuffix(SUFFIX))  # with its folder
        told = purifying.caption_told(caption, [wish])
        made = purifying.run_purify(picture, caption, [wish], int(steps), guidance, share)
    except ErasureError as error:
        return [[], show.message(places.told(error), is_error=True)]
    return [made, show.message(f"Purified. {told}".rstrip())]
