"""Work of every kind on a pico model on a card that is not there: ``card_work.py FOLDER``, in a process of its own.

Prints a line for each kind of work that was done, and how often a step of a training waits for the device.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from card import CARD, Card, install, waits
from quick import quicken

from erasure_core import Concept, applied, erase, read_erasure, write_erasure
from erasure_core.boundary import ExploreSettings, explore
from erasure_core.boundary.report import ReportSettings, Subjected, report
from erasure_core.boundary.searches import LEVELS
from erasure_core.combining import Part, converted, merge
from erasure_core.concept_pictures import ConceptPictures
from erasure_core.hosts.diffusers import DiffusersModel
from erasure_core.methods import METHODS, text_space
from erasure_core.purify import purify
from erasure_core.sampling import sample
from erasure_core.trainer import Trainer

CONCEPT = Concept(("ball",), "box", ("a red box", "a cat"))
SMALL = {
    **{"rank": 2, "trajectories": 2, "trajectory_steps": 2, "batch": 2, "contexts": 2, "steps": 3, "neighbours": 0},
    **{"warm_up": 1, "check_every": 1, "check_starts": 1, "check_steps": 1, "candidates": 1, "text_prompts": 2},
    **{"inversion_steps": 1, "own_pictures": 1, "search": False},
}


def settings_of(name: str, **others: Any) -> Any:
    kind = METHODS[name].settings
    known = {field.name for field in fields(kind)}
    return kind(**{key: value for key, value in {**SMALL, **others}.items() if key in known})


def on_card(folder: Path) -> DiffusersModel:
    model = DiffusersModel.load(folder, "cpu")
    for part in (model.unet, *model.text_encoders, model.vae):
        assert part is not None
        part.to(CARD)
    return DiffusersModel(model.unet, model.text_encoders, model.tokenizers, model.schedule, model.vae)


@contextmanager
def counted() -> Iterator[list[int]]:
    """How often the host waits in each step of all trainings inside."""
    own, found = Trainer._optimise, []

    def optimise(self: Trainer) -> None:
        before = waits.total()
        own(self)
        found.append(waits.total() - before)

    Trainer._optimise = optimise  # type: ignore[method-assign]
    try:
        yield found
    finally:
        Trainer._optimise = own  # type: ignore[method-assign]


def trainings(model: DiffusersModel, names: Sequence[str]) -> None:
    for name in names:
        with counted() as found:
            erase(model, CONCEPT, name, settings_of(name))
        print(name, *found, flush=True)


def finished(model: DiffusersModel, folder: Path) -> None:
    """What is done with a change that there is."""
    made, _ = erase(model, CONCEPT, "closed_form", settings_of("closed_form", search=True))
    path = folder / "ball.safetensors"
    write_erasure(path, made, model)
    stored = read_erasure(path)
    deltas = stored.bind(model)
    merge(model, [Part(stored), Part(stored, 0.5)])
    for form in ("dense", "low-rank"):
        converted(model, stored, form, 1)
    print("files", flush=True)
    with applied(model, [(deltas, 1.0)]):
        model.decode(sample(model, ["a ball"], [0], 2))
    latents = model.latents_of(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    model.decode(purify(model, latents, ["a ball"], [(deltas, 1.0)], 2))
    erase(model, CONCEPT, "auto", settings_of("auto", steps=1), pictures=ConceptPictures(latents=latents.cpu()))
    print("pictures", flush=True)
    few = {"states": 2, "max_batch": 64}
    levels = "+".join(level for level in LEVELS if level != "vocabulary")
    search = ExploreSettings(seconds=None, calls=1500, levels=levels, look=2, pictures=True, **few)  # type: ignore[arg-type]
    found = explore(model, CONCEPT, [(deltas, 1.0)], search)
    assert "+".join(found.levels) == levels, found.levels
    assert found.looked and any(point.thumbnail for point in found.points)
    print("search", flush=True)
    report(model, CONCEPT, [Subjected("one", deltas)], ReportSettings(calls=20, steps=2, **few))  # type: ignore[arg-type]
    print("report", flush=True)


def main(pico: Path, folder: Path, names: Sequence[str]) -> None:
    library = install()
    with pytest.MonkeyPatch.context() as patch, Card():
        quicken(patch)
        patch.setattr(text_space, "VOCABULARY_WORDS", 8)
        model = on_card(pico)
        trainings(model, names) if names else finished(model, folder)
    del library


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
