"""Erase nodes: one for each registered method, made from its settings."""

from __future__ import annotations

from typing import Any

import comfy.model_management as mm
import torch
from comfy_api.latest import io, ui
from comfy_execution.graph import ExecutionBlocker

from ..erasure_core.boundary.explore import ExploreSettings
from ..erasure_core.chosen_words import chosen_words, sentence
from ..erasure_core.concept import Concept, left_out
from ..erasure_core.concept_pictures import ConceptPictures, reads_pictures
from ..erasure_core.effort import effort_of, not_defaults
from ..erasure_core.erasing import applied
from ..erasure_core.erasure_file import read_erasure
from ..erasure_core.errors import Cancelled
from ..erasure_core.hosts.comfyui import ComfyModel
from ..erasure_core.hosts.comfyui_patches import Strengths, apply_deltas
from ..erasure_core.making import Hardening, Made, make_erasure
from ..erasure_core.methods import METHODS, Method, TrainingSettings
from ..erasure_core.safe_files import read_tensors
from .badge import badge_of, hardened
from .efforts import effort_widget
from .host import CATEGORY, PREFIX, ConceptRequest, ConceptType, ErasureType, Item, as_image, library, say, working
from .pictures import adapter_widget, concept_pictures, vision_link
from .presets import preset_widget, with_preset
from .training_progress import NodeProgress, preview_latents
from .widgets import NONE, advanced, guidance_input, inputs_of, settings_from

NO_VAE = "The Erase node makes no preview without a VAE: connect one to it."
NO_CURVE = "The Erase node has no loss to plot: its method solves at once, or it trained for one step only."


def node_id_of(method: Method) -> str:
    return f"{PREFIX}Erase_{method.name}"


def _schema(method: Method) -> io.Schema:
    trains = issubclass(method.settings, TrainingSettings)
    every = io.Int.Input(
        "preview_every",
        default=50,
        min=0,
        max=10_000,
        control_after_generate=False,
        tooltip="Training steps between two preview pictures on the node; 0 makes none. Previews take time.",
    )
    return io.Schema(
        node_id=node_id_of(method),
        display_name=f"Erase Concept: {method.title}",
        category=CATEGORY,
        description=f"{method.reference}. Our form: {method.status}. The loaded model itself is never changed.",
        inputs=[
            io.Model.Input("model", tooltip="The model to erase from, as it arrives here: LoRAs before it count."),
            io.Clip.Input("clip", tooltip="The text encoder that belongs to the model."),
            ConceptType.Input("concept", tooltip="What to erase, from a Concept node."),
            preset_widget(),
            *inputs_of(method.settings),
            io.Int.Input(
                "resolution",
                default=0,
                min=0,
                max=2048,
                step=64,
                tooltip="Width and height in pixels that the erasure is made at; 0 takes what the model was made for. "
                "Less needs less memory and time.",
            ),
            *([every] if trains else []),
            *([adapter_widget()] if reads_pictures(method) else []),
            *harden_inputs(),
            io.Vae.Input(
                "vae",
                optional=True,
                tooltip="For pictures before and after; without it none are made, and what takes preview says so.",
            ),
            *([vision_link()] if reads_pictures(method) else []),
            *([effort_widget()] if trains else []),
        ],
        outputs=[
            io.Model.Output("erased_model", display_name="model", tooltip="The model with the erasure applied."),
            io.Clip.Output("erased_clip", display_name="clip", tooltip="The text encoder with the erasure applied."),
            ErasureType.Output("erasure", display_name="erasure", tooltip="For Stack, Save, Inspect and profiles."),
            io.LoraModel.Output(
                "lora",
                display_name="lora",
                tooltip="For stock nodes that take a LORA_MODEL. Load LoRA Model takes the network's part only: "
                "changes of the text encoder need Apply Erasure, or Load LoRA with CLIP on the file.",
            ),
            io.LossMap.Output(
                "loss",
                display_name="loss",
                tooltip="For the stock Plot Loss Graph, which needs two different values: of a training of two steps "
                "or more. Methods that solve at once have none.",
            ),
            io.Image.Output(
                "preview", display_name="preview", tooltip="Without, then with the erasure; needs the VAE."
            ),
        ],
        hidden=[io.Hidden.unique_id],
    )


def _execute(cls: Any, method: Method, model: Any, clip: Any, concept: ConceptRequest, **others: Any) -> io.NodeOutput:
    node_id = cls.hidden.unique_id
    with working():
        loaded = ComfyModel(model, clip, others.get("vae"), others["resolution"])
        progress = NodeProgress(node_id, loaded, concept, others.get("preview_every", 0))
        settings, replaced = with_preset(method, settings_from(method.settings, others), others.get("preset", NONE))
        effort = effort_of(others.get("effort"), method, not_defaults(settings))
        shown_pictures = _pictures_of(method, loaded, concept, others)
        hardening = _hardening(concept, others)
        try:
            made = make_erasure(
                *(library(), loaded, concept.concept, method, settings, progress),
                pictures=shown_pictures,
                hardening=hardening,
                effort=effort,
            )
        except Cancelled as stopped:
            say(node_id, str(stopped))  # the host's own end of an interrupted graph says nothing of what is kept
            raise
        say(node_id, _summary(made, concept.concept, replaced))
        patcher, text = apply_deltas(loaded, made.erasure.deltas, Strengths())
        pictures = _pictures(loaded, made, concept)
        shown = {"erasure": [badge_of(made.path.name, made.erasure.manifest) | _told(made)]}
        if pictures is not None:
            shown |= ui.PreviewImage(pictures, cls=cls).as_dict()
        image = pictures if pictures is not None else ExecutionBlocker(NO_VAE)
        stack = (Item(read_erasure(made.path)),)
        return io.NodeOutput(patcher, text, stack, read_tensors(made.path)[0], _loss_map(made), image, ui=shown)


def harden_inputs() -> list[Any]:
    """Widgets for the rounds of searching and erasing again."""
    return [
        io.Int.Input(
            "harden",
            default=0,
            min=0,
            max=10,
            control_after_generate=False,
            tooltip="Rounds after erasing: each searches for prompts that still reach the concept, and erases "
            "them too. It ends early when nothing is found. 0 is off.",
        ),
        advanced(
            io.Int.Input(
                "harden_seconds",
                default=60,
                min=1,
                max=86_400,
                control_after_generate=False,
                tooltip="How long each of these searches may take, in seconds.",
            )
        ),
        advanced(
            guidance_input(
                "harden_guidance", "Guidance scale of the pictures that these searches look at: what you paint with."
            )
        ),
    ]


def _hardening(request: ConceptRequest, values: dict[str, Any]) -> Hardening:
    search = ExploreSettings(
        seconds=float(values["harden_seconds"]),
        guidance=values["harden_guidance"],
        seed=values.get("seed", 0),
        sensitive=request.explicit,
    )
    return Hardening(values["harden"], search)


def _summary(made: Made, concept: Concept, replaced: str) -> str:
    """What the node says when it is done."""
    reused = f"Made earlier with the same inputs, used again:\n{made.path.name}" if made.reused else ""
    chosen = sentence(chosen_words(concept, made.erasure.manifest))
    said = [replaced, reused, left_out(concept), *made.history.notes, chosen, hardened(made.erasure.manifest)]
    return "\n".join(filter(None, said))


def _pictures_of(
    method: Method, model: ComfyModel, request: ConceptRequest, values: dict[str, Any]
) -> ConceptPictures | None:
    """What a method learns from; pictures that it does not read ask for no VAE and make no other file."""
    if not reads_pictures(method):
        return None
    return concept_pictures(model, request, values.get("ip_adapter", NONE), values.get("clip_vision"))


def _loss_map(made: Made) -> Any:
    """LOSS_MAP of the stock nodes, or what says why there is none: their plot fails without two different values."""
    losses = [sum(terms.values()) for terms in made.history.losses]
    return {"loss": losses} if len(set(losses)) > 1 else ExecutionBlocker(NO_CURVE)


def _told(made: Made) -> dict[str, Any]:
    return {"reused": made.reused, "losses": [[i + 1, terms] for i, terms in enumerate(made.history.losses)]}


def _pictures(model: ComfyModel, made: Made, request: ConceptRequest) -> torch.Tensor | None:
    """The preview prompts without and with the erasure, IMAGE; ``None`` without a VAE."""
    if model.vae is None:
        return None
    with model.trainable():
        before = preview_latents(model, request)
        with applied(model, [(made.erasure.deltas, 1.0)]):
            after = preview_latents(model, request)
    mm.throw_exception_if_processing_interrupted()
    return as_image(model.decode(torch.cat([before, after])))


def _node(method: Method) -> type:
    """A node class; ComfyUI calls its methods on locked copies, so that they must not hold any state."""

    def define_schema(cls: Any) -> io.Schema:
        return _schema(method)

    def execute(cls: Any, **inputs: Any) -> io.NodeOutput:
        return _execute(cls, method, **inputs)

    members = {"define_schema": classmethod(define_schema), "execute": classmethod(execute), "__module__": __name__}
    return type(f"Erase_{method.name}", (io.ComfyNode,), members)


NODES = [_node(method) for method in METHODS.values()]
