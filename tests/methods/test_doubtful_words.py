"""What a model sees in pictures that it paints itself, of words that directions leave in doubt."""

from __future__ import annotations

import zlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from erasure_core import doubtful_words
from erasure_core.concept import Frame
from erasure_core.doubtful_words import PICTURES, PictureLooks
from erasure_core.errors import Cancelled
from erasure_core.hosts.diffusers import DiffusersModel
from erasure_core.progress import Progress, Silent

SHAPE = (4, 8, 8)
ALONE, ON_A_HILL = Frame("a", "", ""), Frame("a", "on a hill", "a hill")


def made_of(word: str) -> Tensor:
    """The picture that a word stands for."""
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(zlib.crc32(word.encode())))


class Knowing:
    """A model that paints one picture for each of some words, whatever stands around it, and grey for others.

    Args:
        pictures: what each word paints.
        schedule: as of any model.
    """

    def __init__(self, pictures: dict[str, Tensor], schedule: Any) -> None:
        self.pictures, self.schedule = pictures, schedule
        self.device, self.dtype, self.latent_shape = torch.device("cpu"), torch.float32, SHAPE
        self.calls = 0

    def encode(self, prompts: list[str]) -> Any:
        return Prompts([next((word for word in prompt.split() if word in self.pictures), "") for prompt in prompts])

    def predict(self, z: Tensor, t: Tensor, prompts: Any) -> Tensor:
        self.calls += len(z)
        clean = torch.stack([self.pictures.get(word, torch.zeros(SHAPE)) for word in prompts.words])
        a, s = self.schedule.scales(t)
        noise: Tensor = (z - a * clean) / s
        return noise


class Prompts(SimpleNamespace):
    """Conditioning by the word that counts."""

    def __init__(self, words: list[str]) -> None:
        super().__init__(words=words)

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, rows: Any) -> Prompts:
        return Prompts([self.words[row] for row in rows])


@pytest.fixture
def knowing(pico: DiffusersModel, monkeypatch: pytest.MonkeyPatch) -> Knowing:
    """It paints balls, orbs that are nearly balls, and boxes."""
    monkeypatch.setattr(doubtful_words, "encode_each", lambda model, prompts: model.encode(list(prompts)))
    ball, box = made_of("ball"), made_of("box")
    return Knowing({"ball": ball, "orb": ball + 0.3 * made_of("orb"), "box": box}, pico.schedule)


def looker(model: Knowing, *own: str, progress: Progress | None = None) -> PictureLooks:
    return PictureLooks(model, own, [ALONE, ON_A_HILL], SHAPE, 16, 0, progress or Silent())  # type: ignore[arg-type]


def test_a_word_for_the_concept_explains_its_pictures_and_another_things_does_not(knowing: Knowing) -> None:
    ball, orb, box, nothing = looker(knowing, "ball").explained(["ball", "orb", "box", "zorp"])
    assert ball == pytest.approx(1.0) and nothing == pytest.approx(0.0, abs=1e-6)
    assert orb > 0.8 and box < 0


def test_an_own_word_that_the_model_does_not_know_hides_none(knowing: Knowing) -> None:
    """Half of the pictures are then of nothing."""
    ball, orb, box = looker(knowing, "ball", "zorp").explained(["ball", "orb", "box"])
    assert 0.7 < orb < ball < 1 and box < 0


def test_of_a_concept_that_the_model_does_not_know_nothing_is_in_doubt(knowing: Knowing) -> None:
    assert looker(knowing, "zorp").explained(["ball", "box"]) == [0.0, 0.0]


def test_pictures_of_a_word_show_the_concept_or_its_rival(knowing: Knowing) -> None:
    asked = looker(knowing, "ball")
    assert asked.sees("orb", ["box"]) > 0 > asked.sees("box", ["box"])
    assert asked.sees("box", []) < 0, "nothing explains a box better than a ball does"


def test_looks_take_as_many_predictions_as_are_said(knowing: Knowing) -> None:
    """At full size each takes a second on a CPU."""
    looker(knowing, "ball").explained(["orb", "box"])
    painting = 2 * doubtful_words.STEPS * PICTURES
    assert knowing.calls == 2 * (painting + (1 + 1 + 2) * PICTURES * doubtful_words.LEVELS)


def test_looking_can_be_stopped(knowing: Knowing) -> None:
    class Stopped(Silent):
        def cancelled(self) -> bool:
            return True

    asked = looker(knowing, "ball", progress=Stopped())
    with pytest.raises(Cancelled):
        asked.explained(["orb"])
