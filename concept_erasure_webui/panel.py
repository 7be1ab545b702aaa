"""The always-on panel of txt2img and img2img: picks erasures, and hangs the gate into every generation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr
from modules import scripts

from erasure_core.errors import InvalidSettings
from erasure_core.library import SUFFIX

from . import gate, places, wishes
from .wishes import NONE, SLOTS, Wish

MOST = 2.0
"""Strength that the panel's sliders go up to."""


def choices() -> list[str]:
    return [NONE, *(name.removesuffix(SUFFIX) for name in places.library().names())]


def listed() -> list[str]:
    """Those of the choices that the infotext can say; the others can be renamed in the Library."""
    return list(filter(wishes.is_plain, choices()))


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
                        listed(), value=NONE, label=f"Erasure {place}", elem_id=f"concept_erasure_name_{tab}_{place}"
                    )
                    strength = gr.Slider(
                        0.0, MOST, value=1.0, step=0.05, label=f"Strength {place}",
                        elem_id=f"concept_erasure_strength_{tab}_{place}",
                    )  # fmt: skip
                names.append(name)
                controls += [name, strength]
            # Hosts drop the values that a request has too many of; here the first of those shows.
            rest = gr.Textbox(
                "", visible=False, label="More than the panel holds", elem_id=f"concept_erasure_rest_{tab}"
            )
            refresh = gr.Button("Refresh list", elem_id=f"concept_erasure_refresh_{tab}")
            page = gr.context.Context.root_block
            for event in (refresh.click, page.load):  # the page was built when the server was started
                event(lambda: [gr.update(choices=listed())] * SLOTS, inputs=[], outputs=names)
            gr.HTML(
                "The prompt can do the same: &lt;erase:name:strength&gt;. Erasing weights does not delete knowledge; "
                "see the Concept Erasure tab for what was measured."
            )
        self.infotext_fields = _paste_fields(controls)
        self.paste_field_names = [gate.INFOTEXT]
        return [*controls, rest]

    # Each of these is called for every generation that runs scripts, whether the panel is on or not.
    def before_process(self, p: Any, *values: Any) -> None:
        gate.drop_overrides(p)

    def process(self, p: Any, *values: Any) -> None:
        gate.begin(p, values)

    def before_process_batch(self, p: Any, *values: Any, **kwargs: Any) -> None:
        gate.begin_batch(p, int(kwargs.get("batch_number", 0)))

    def postprocess(self, p: Any, processed: Any, *values: Any) -> None:
        gate.end(p)

    def after_extra_networks_activate(self, p: Any, *values: Any, **kwargs: Any) -> None:
        gate.put_on_hires_text(p, kwargs.get("extra_network_data"))

    def process_batch(self, p: Any, *values: Any, **kwargs: Any) -> None:
        gate.put_on_text(p)

    def process_before_every_sampling(self, p: Any, *values: Any, **kwargs: Any) -> None:
        gate.put_on_unet(p)


def paste_rest(_: str, params: dict[str, Any]) -> None:
    """For ``on_infotext_pasted``: what the panel has no room or no slider for goes into the prompt as tags. What cannot
    be read goes there too, and the generation says so."""
    text = str(params.get(gate.INFOTEXT, ""))
    if text:
        try:
            fitting, rest = _parted(wishes.from_text(text))
            tags = "".join(f"<erase:{wish.name}:{wish.unet:g}:{wish.text:g}>" for wish in rest)
        except InvalidSettings:
            fitting, tags = [], f"<erase:{text}>"
        params[gate.INFOTEXT] = wishes.to_text(fitting)
        params["Prompt"] = f"{params.get('Prompt', '')}{tags}"


def pasted(params: dict[str, Any]) -> list[Any]:
    """The panel's values for a pasted infotext; off if it has none of ours. What ``paste_rest`` did not see and the
    panel cannot hold, as the API's ``infotext``, gets into the last slot as it is: there it is refused."""
    text = str(params.get(gate.INFOTEXT, ""))
    try:
        fitting, rest = _parted(wishes.from_text(text))
        strange = wishes.to_text(rest)
    except InvalidSettings:
        fitting, strange = [], text
    slots: list[tuple[str, float]] = [(wish.name, wish.unet) for wish in fitting]
    if strange:
        slots = [*slots[: SLOTS - 1], (f"{strange},", 1.0)]
    slots += [(NONE, 1.0)] * (SLOTS - len(slots))
    return [bool(fitting or strange), *(value for slot in slots for value in slot)]


def _parted(found: Sequence[Wish]) -> tuple[list[Wish], list[Wish]]:
    """What the panel can hold, and the rest."""
    fitting: list[Wish] = []
    rest: list[Wish] = []
    for wish in found:
        fits = wish.unet == wish.text <= MOST and len(fitting) < SLOTS
        (fitting if fits else rest).append(wish)
    return fitting, rest


def _paste_fields(controls: list[Any]) -> list[tuple[Any, Any]]:
    def value(place: int) -> Any:
        return lambda params: pasted(params)[place]

    return [(control, value(place)) for place, control in enumerate(controls)]
