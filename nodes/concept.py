"""The Concept node: what to erase, said once for all Erase nodes."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..erasure_core.concept import Concept
from ..erasure_core.errors import InvalidConcept
from .host import CATEGORY, PREFIX, ConceptRequest, ConceptType, lines


class ConceptNode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=f"{PREFIX}Concept",
            display_name="Concept",
            category=CATEGORY,
            description="What the model must no longer paint, what it paints instead, and what must stay as it is.",
            inputs=[
                io.String.Input(
                    "words",
                    multiline=True,
                    default="",
                    placeholder="Vincent van Gogh\nVan Gogh's style",
                    tooltip="The concept, one way to say it per line. The first one names it; all are erased.",
                ),
                io.String.Input(
                    "alternative",
                    default="",
                    tooltip="What is painted in its place, for example: dry brush painting. Empty: the method chooses.",
                ),
                io.String.Input(
                    "keep",
                    multiline=True,
                    default="",
                    placeholder="a painting by Claude Monet\na photo of a dog",
                    tooltip="Prompts whose pictures must not change, one per line: neighbours of the concept first.",
                ),
                io.Boolean.Input(
                    "explicit",
                    default=False,
                    tooltip="The concept must not be shown: no previews of it are made while erasing. Words that are "
                    "known to be explicit count as if this were on.",
                ),
                io.Image.Input(
                    "pictures", optional=True, tooltip="Pictures of the concept, for methods that learn from pictures."
                ),
            ],
            outputs=[ConceptType.Output("concept", display_name="concept")],
        )

    @classmethod
    def validate_inputs(cls, words: str, alternative: str, keep: str) -> bool | str:
        try:
            _concept(words, alternative, keep)
        except InvalidConcept as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls, words: str, alternative: str, keep: str, explicit: bool, pictures: torch.Tensor | None = None
    ) -> io.NodeOutput:
        return io.NodeOutput(ConceptRequest(_concept(words, alternative, keep), pictures, explicit))


def _concept(words: str | None, alternative: str | None, keep: str | None) -> Concept:
    # A widget that is linked to another node arrives as None when the graph is only checked.
    if words is None:
        return Concept(("…",))
    return Concept(lines(words), (alternative or "").strip() or None, lines(keep or ""))


NODES = [ConceptNode]
