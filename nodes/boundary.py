"""Explore Boundary and Boundary Map: which prompts still reach a concept, and which of them to erase too."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from comfy_api.latest import io, ui

from ..erasure_core.boundary.exploration import Exploration
from ..erasure_core.boundary.explore import ExploreSettings, explore
from ..erasure_core.boundary.harden import MOST_ADDED, widened
from ..erasure_core.boundary.map import map_picture, write_map
from ..erasure_core.boundary.searches import LEVELS
from ..erasure_core.errors import Cancelled
from .host import CATEGORY, PREFIX, BoundaryType, ConceptRequest, ConceptType, ErasureType, Stack, lines, say, working
from .subjects import erasures_of, loaded_model, new_folder, shown_file
from .training_progress import SearchProgress
from .widgets import guidance_input

SEARCHES = {
    "all": LEVELS,
    "words": ("lexical", "vocabulary"),
    "text": ("lexical", "closed-form", "vocabulary", "self-check", "genetic"),
    **{level: (level,) for level in LEVELS},
}
"""What can be chosen, and the searches that it stands for."""
LISTED = 100
"""Leaking prompts in the text; the map and the file hold all."""


@dataclass(frozen=True)
class Boundary:
    """What runs on a link of the type BOUNDARY.

    Args:
        found: the result of the search.
        request: the concept that was searched for.
        folder: where the result was written.
        most: how many leaking words are added to the concept where none are selected.
    """

    found: Exploration
    request: ConceptRequest
    folder: Path
    most: int

    def widened(self, words: tuple[str, ...] = ()) -> ConceptRequest:
        """The concept with these words added, or else with the worst that leak."""
        chosen = words or self.found.leaking_words(self.most)
        return replace(self.request, concept=widened(self.request.concept, self.found.as_names(chosen)))


def search_inputs(what: str, interrupt: str) -> list[Any]:
    """Widgets that say how to search, for every node that does: what is searched, and what Interrupt does there."""
    return [
        io.Int.Input(
            "seconds",
            default=60,
            min=1,
            max=86_400,
            control_after_generate=False,
            tooltip=f"How long to search{what}, in seconds. {interrupt}",
        ),
        io.String.Input(
            "tries",
            multiline=True,
            default="",
            placeholder="the painter with one ear\nswirling night sky",
            tooltip="Prompts of your own to try, one per line: synonyms, descriptions, other languages.",
        ),
        io.Int.Input(
            "states",
            default=8,
            min=2,
            max=64,
            control_after_generate=False,
            tooltip="Noisy latents at which prompts are compared. Fewer are faster and judge less surely.",
        ),
        guidance_input(
            "guidance",
            "Guidance scale of the pictures that are made for judging: what you paint with. Distilled models "
            "(Turbo, Lightning) want 1 to 2.",
        ),
        io.Int.Input("seed", default=0, min=0, max=2**53, control_after_generate=False, tooltip="Random seed."),
        io.Int.Input(
            "resolution",
            default=0,
            min=0,
            max=2048,
            step=64,
            tooltip="Width and height in pixels that the prompts are judged at; 0 takes what the model was made for. "
            "Less needs less memory and time.",
        ),
    ]


class ExploreBoundary(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        seconds, *others = search_inputs("", "Interrupt ends a search earlier.")
        return io.Schema(
            node_id=f"{PREFIX}Explore",
            display_name="Explore Boundary",
            category=CATEGORY,
            description="Searches for prompts that still reach a concept, also ones that nobody would think of.",
            inputs=[
                io.Model.Input("model", tooltip="The model without the erasure, as it arrives here."),
                io.Clip.Input("clip", tooltip="The text encoder that belongs to the model."),
                ConceptType.Input("concept", tooltip="What to search for, from a Concept node."),
                seconds,
                io.Combo.Input(
                    "searches",
                    options=list(SEARCHES),
                    default="all",
                    tooltip="all: every search. words: the concept's words, misspellings and the whole vocabulary. "
                    "text: these and what the text encoder alone gives. Or one search by its name.",
                ),
                *others,
                io.Int.Input(
                    "look",
                    default=24,
                    min=0,
                    max=1000,
                    control_after_generate=False,
                    tooltip="How many of the worst prompts are painted and looked at; one leaks only if most of "
                    "its pictures show the concept as well. 0 looks at none.",
                ),
                io.Int.Input(
                    "add_words",
                    default=MOST_ADDED,
                    min=0,
                    max=1000,
                    control_after_generate=False,
                    tooltip="Most leaking words that are added to the concept, the worst first. 0 adds none.",
                ),
                io.Boolean.Input(
                    "pictures",
                    default=False,
                    tooltip="Small pictures of the worst prompts on the map; needs a VAE. Of an explicit concept they "
                    "are blurred.",
                ),
                ErasureType.Input(
                    "erasure",
                    optional=True,
                    tooltip="What is tested. Without it: where the concept lives in the untouched model.",
                ),
                io.Vae.Input("vae", optional=True, tooltip="Only for pictures."),
            ],
            outputs=[
                BoundaryType.Output("boundary", display_name="boundary", tooltip="For the Boundary Map."),
                ConceptType.Output(
                    "hardened", display_name="concept", tooltip="The concept with the worst leaking words added."
                ),
                io.Image.Output("map", display_name="map", tooltip="The map as a picture."),
                io.String.Output("text", display_name="text", tooltip="The prompts that leak, for reading."),
                io.String.Output("json", display_name="json", tooltip="Everything that was tried, as JSON."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, model: Any, clip: Any, concept: ConceptRequest, erasure: Stack = (), vae: Any = None, **how: Any
    ) -> io.NodeOutput:
        node_id = cls.hidden.unique_id
        with working():
            loaded = loaded_model(model, clip, vae, how["resolution"], how["pictures"])
            found = explore(
                loaded,
                concept.concept,
                erasures_of(loaded, erasure),
                _settings(concept, how),
                SearchProgress(node_id),
                lines(how["tries"]),
            )
            boundary = Boundary(found, concept, new_folder(f"boundary {concept.concept.name}"), how["add_words"])
            write_map(found, boundary.folder)
            if found.stopped:
                # What is handed on would be kept as the result of these inputs; half a search is not.
                say(node_id, f"Stopped early; found so far is in output/{_place(boundary)}.\n{found.summary()}")
                raise Cancelled("Stopped while exploring.")
            say(node_id, found.summary())
            picture = torch.from_numpy(np.asarray(map_picture(found), dtype=np.float32) / 255)[None]
            shown = {**ui.PreviewImage(picture, cls=cls).as_dict(), "text": [readable(found)]}
            return io.NodeOutput(
                boundary, boundary.widened(), picture, readable(found), found.to_json(), ui=shown
            )  # fmt: skip


def _settings(request: ConceptRequest, how: dict[str, Any]) -> ExploreSettings:
    return ExploreSettings(
        seconds=float(how["seconds"]),
        levels="+".join(SEARCHES[how["searches"]]),
        states=how["states"],
        guidance=how["guidance"],
        look=how["look"],
        pictures=how["pictures"],
        sensitive=request.explicit,
        seed=how["seed"],
    )


def _place(boundary: Boundary) -> str:
    return shown_file(boundary.folder / "map.html")["subfolder"]


def readable(found: Exploration) -> str:
    """What was found, as text: the summary, how many leak of each kind, and the worst prompts."""
    counts = [f"{name}: {leaking} of {every} leak" for name, (leaking, every) in found.shares().items()]
    worst = [
        f"{point.leak:6.1%}  {point.text}  ({point.origin}{', hidden' if point.hidden else ''})"
        for point in found.leaking[:LISTED]
    ]
    rest = len(found.leaking) - len(worst)
    more = [f"… and {rest} more in the map"] if rest > 0 else []
    limit = "A search gives examples, not a proof: what it did not find can leak too."
    return "\n".join([found.summary(), *counts, "", *worst, *more, *([""] if worst else []), limit])


class BoundaryMap(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=f"{PREFIX}BoundaryMap",
            display_name="Boundary Map",
            category=CATEGORY,
            description="What was found, as a map to read, filter and select from; what is selected joins the concept.",
            inputs=[
                BoundaryType.Input("boundary", tooltip="From Explore Boundary."),
                io.String.Input(
                    "selected",
                    multiline=True,
                    default="",
                    placeholder="select points on the map",
                    tooltip="Words to erase too, one per line; selecting points on the map writes them here. "
                    "Empty: the worst that leak, as many as Explore Boundary adds.",
                ),
            ],
            outputs=[
                ConceptType.Output("concept", display_name="concept", tooltip="With the selected words added."),
                io.String.Output("words", display_name="words", tooltip="The words of that concept, one per line."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, boundary: Boundary, selected: str) -> io.NodeOutput:
        with working():
            request = boundary.widened(lines(selected))
            shown = {"boundary_map": [shown_file(boundary.folder / "map.html")]}
            return io.NodeOutput(request, "\n".join(request.concept.words), ui=shown)


NODES = [ExploreBoundary, BoundaryMap]
