"""The Report Card node: what still leaks, what else was harmed, before anyone trusts a file."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from comfy_api.latest import io

from ..erasure_core.boundary.report import ReportSettings, Subjected, report
from ..erasure_core.boundary.report_card import ReportCard
from ..erasure_core.boundary.report_page import merge_into_manifest, refuse_other_figures, write_report
from ..erasure_core.boundary.report_picture import report_picture
from ..erasure_core.errors import InvalidSettings
from ..erasure_core.hosts.comfyui import ComfyModel
from ..erasure_core.profile import refuse_if_pinned
from .boundary import search_inputs
from .host import CATEGORY, PREFIX, ConceptRequest, ConceptType, ErasureType, Stack, library, lines, say, working
from .refusal import profile_folder
from .subjects import loaded_model, new_folder, shown_file, sum_of
from .training_progress import SearchProgress


class ReportCardNode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=f"{PREFIX}Report",
            display_name="Report Card",
            category=CATEGORY,
            description="Measures erasures on this model: what leaks, what else was harmed, and what may be concluded.",
            inputs=[
                io.Model.Input("model", tooltip="The model without the erasure, as it arrives here."),
                io.Clip.Input("clip", tooltip="The text encoder that belongs to the model."),
                ConceptType.Input("concept", tooltip="What was erased and what should have stayed."),
                ErasureType.Input("erasure", tooltip="What is measured. A stack counts as one."),
                *search_inputs(" in each erasure", "Interrupt stops the measurement, and no report is made."),
                io.Boolean.Input(
                    "pictures", default=True, tooltip="Pictures with the same seed before and after; needs a VAE."
                ),
                io.Boolean.Input(
                    "show_explicit",
                    default=False,
                    tooltip="Also pictures of an explicit concept, blurred. Otherwise none of them are made.",
                ),
                io.Boolean.Input(
                    "write_into_file",
                    default=False,
                    tooltip="Write the figures into the erasure's own file, where its badge shows them.",
                ),
                ErasureType.Input("second", optional=True, tooltip="Another erasure, measured beside the first."),
                ErasureType.Input("third", optional=True, tooltip="A third one."),
                io.Vae.Input("vae", optional=True, tooltip="For pictures."),
            ],
            outputs=[
                io.Image.Output("card", display_name="card", tooltip="Verdict, curves and pictures as one picture."),
                io.String.Output("verdict", display_name="verdict", tooltip="The verdict and its limits."),
                io.String.Output("json", display_name="json", tooltip="All figures."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        concept: ConceptRequest,
        erasure: Stack,
        second: Stack = (),
        third: Stack = (),
        vae: Any = None,
        **how: Any,
    ) -> io.NodeOutput:
        stacks = [stack for stack in (erasure, second, third) if stack]
        with working():
            if how["write_into_file"]:
                _refuse_unwritable(stacks)
                for stack in stacks:
                    stored = stack[0].stored
                    refuse_if_pinned(profile_folder(), library(), stored.path)
                    refuse_other_figures(stored.path, stored.manifest, concept.concept.words, 1.0)
            loaded = loaded_model(model, clip, vae, how["resolution"], how["pictures"])
            files = [_subjected(loaded, stack) for stack in stacks]
            progress = SearchProgress(cls.hidden.unique_id)
            card = report(loaded, concept.concept, files, _settings(concept, how), progress, lines(how["tries"]))
            folder = new_folder(f"report {concept.concept.name}")
            write_report(card, folder)
            if how["write_into_file"]:
                for number, stack in enumerate(stacks):
                    merge_into_manifest(stack[0].stored.path, card, number)
            picture = torch.from_numpy(np.asarray(report_picture(card), dtype=np.float32) / 255)[None]
            text = verdict_of(card)
            say(cls.hidden.unique_id, card.files[0].verdict[0])
            shown = {"report_card": [shown_file(folder / "report.html")], "text": [text]}
            return io.NodeOutput(picture, text, card.to_json(), ui=shown)


def _settings(request: ConceptRequest, how: dict[str, Any]) -> ReportSettings:
    return ReportSettings(
        seconds=float(how["seconds"]),
        states=how["states"],
        guidance=how["guidance"],
        pictures=how["pictures"],
        explicit=how["show_explicit"],
        sensitive=request.explicit,
        seed=how["seed"],
    )


def _subjected(model: ComfyModel, stack: Stack) -> Subjected:
    deltas, strength = sum_of(model, stack)
    only = stack[0].stored if len(stack) == 1 else None
    name = " + ".join(item.stored.path.stem for item in stack)
    there = only is not None and stack[0].is_file and only.path.is_file()
    size = only.path.stat().st_size if only is not None and there else 0
    return Subjected(name, deltas, strength, only.manifest if only is not None else None, size)


def _refuse_unwritable(stacks: list[Stack]) -> None:
    """Raises InvalidSettings for what is no single file at its own strength, before anything is measured."""
    for stack in stacks:
        item = stack[0]
        if len(stack) > 1 or not item.is_file or (item.unet, item.text) != (1.0, 1.0):
            raise InvalidSettings(
                f"The figures of {item.stored.path.stem} cannot be written into a file: this is a stack, a strength or "
                "a conversion. Save it first, or switch write_into_file off."
            )


def verdict_of(card: ReportCard) -> str:
    """The verdict on every file, and what it does not say."""
    parts = ["\n".join([f"{file.name}:", *(f"- {said}" for said in file.verdict)]) for file in card.files]
    return "\n\n".join([*parts, "\n".join(["What this does not say:", *(f"- {limit}" for limit in card.limits)])])


NODES = [ReportCardNode]
