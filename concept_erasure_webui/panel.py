"""The always-on panel of txt2img and img2img: picks erasures, and hangs the gate into every generation."""

from __future__ import annotations

from typing import Any

import gradio as gr
from modules import scripts

from erasure_core.library import SUFFIX

from . import gate, places, wishes
from .wishes import NONE, SLOTS


def choices() -> list[str]:
    return [NONE, *(name.removesuffix(SUFFIX) for name in places.library().names())]


class ConceptErasureScript(scripts.Script):
    """API users send the values of ``ui`` in its order, so that order never changes."""

    def title(self) -> str:
        return "Concept Erasure"

    def show(self, is_img2img: bool) -> Any:
        return scripts.AlwaysVisible

    def ui(self, is_img2img: bool) -> list[Any]:
        tab = "img2img" if is_img2img else "txt2img"
        with gr.Accordion("Concept Erasure", open=False, elem_id=f"concept_erasure_panel_{tab}"):
            enabled = gr.Checkbox(False, label="Erase", elem_id=f"concept_erasure_enabled_{tab}")
            controls: list[Any] = [enabled]
            names = []
            for place in range(1, SLOTS + 1):
                with gr.Row():
                    name = gr.Dropdown(
                        choices(), value=NONE, label=f"Erasure {place}", elem_id=f"concept_erasure_name_{tab}_{place}"
                    )
                    strength = gr.Slider(
                        0.0, 2.0, value=1.0, step=0.05, label=f"Strength {place}",
                        elem_id=f"concept_erasure_strength_{tab}_{place}",
                    )  # fmt: skip
                names.append(name)
                controls += [name, strength]
            refresh = gr.Button("Refresh list", elem_id=f"concept_erasure_refresh_{tab}")
            page = gr.context.Context.root_block
            for event in (refresh.click, page.load):  # the page was built when the server was started
                event(lambda: [gr.update(choices=choices())] * SLOTS, inputs=[], outputs=names)
            gr.HTML(
                "The prompt can do the same: &lt;erase:name:strength&gt;. Erasing weights does not delete knowledge; "
                "see the Concept Erasure tab for what was measured."
            )
        self.infotext_fields = _paste_fields(controls)
        self.paste_field_names = [gate.INFOTEXT]
        return controls

    # Each of these is called for every generation that runs scripts, whether the panel is on or not.
    def process(self, p: Any, *values: Any) -> None:
        gate.begin(p, values)

    def before_process_batch(self, p: Any, *values: Any, **kwargs: Any) -> None:
        gate.begin_batch(p, int(kwargs.get("batch_number", 0)))

    def postprocess(self, p: Any, processed: Any, *values: Any) -> None:
        gate.end(p)

    def process_batch(self, p: Any, *values: Any, **kwargs: Any) -> None:
        gate.put_on_text(p)

    def process_before_every_sampling(self, p: Any, *values: Any, **kwargs: Any) -> None:
        gate.put_on_unet(p)


def pasted(params: dict[str, Any]) -> list[Any]:
    """The panel's values for a pasted infotext; off if it has none of ours or an unreadable one."""
    try:
        found = wishes.from_text(str(params.get(gate.INFOTEXT, "")))[:SLOTS]
    except wishes.InvalidSettings:
        found = []
    values: list[Any] = [bool(found)]
    for place in range(SLOTS):
        values += [found[place].name, found[place].unet] if place < len(found) else [NONE, 1.0]
    return values


def _paste_fields(controls: list[Any]) -> list[tuple[Any, Any]]:
    def value(place: int) -> Any:
        return lambda params: pasted(params)[place]

    return [(control, value(place)) for place, control in enumerate(controls)]
