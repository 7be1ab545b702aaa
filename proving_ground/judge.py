"""Looks at pictures of the world and says what is in them: objects with colour and style, background, or garbage."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from .lexicon import BACKGROUND_NAMES, COLOUR_NAMES, CONCEPTS, OBJECT_NAMES, STYLE_NAMES
from .tokens import MODEL_DIR

WIDTH, FINE = 128, 64
BATCH = 128


@dataclass(frozen=True)
class Seen:
    """One object in a picture, by names of the lexicon."""

    object: str
    colour: str
    style: str


@dataclass(frozen=True)
class Verdict:
    """What the judge says about one picture.

    Args:
        things: the objects found, in the lexicon's order; none in an empty picture.
        background: the background that fits best.
        garbage: the picture is ruined (blurred, shuffled, half erased, noise); what was found in it does not count.
    """

    things: tuple[Seen, ...]
    background: str
    garbage: bool

    @property
    def intact(self) -> bool:
        """Whether there is a sound picture of something."""
        return bool(self.things) and not self.garbage


def sees(verdict: Verdict, concept_name: str) -> bool:
    """Whether an object, colour or style of the lexicon is in a picture that is not ruined."""
    kind = CONCEPTS[concept_name].kind
    return verdict.intact and any(getattr(thing, kind) == concept_name for thing in verdict.things)


@dataclass(frozen=True)
class Logits:
    """Raw outputs for a batch of B pictures: O objects, C colours, S styles."""

    presence: Tensor
    """[B, O], independent of each other."""
    colour: Tensor
    """[B, O, C], the colour of each object if it is there."""
    style: Tensor
    """[B, O, S], its style."""
    background: Tensor
    """[B, backgrounds]."""
    garbage: Tensor
    """[B]."""


def _block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    return nn.Sequential(convolution, nn.GroupNorm(outputs // 8, outputs), nn.SiLU())


def _head(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, WIDTH), nn.SiLU(), nn.Linear(WIDTH, outputs))


class JudgeNet(nn.Module):
    """A small convolutional network in which each object class looks with its own attention.

    Colour and style are read by a second attention of the class, for its object's surface, so that two objects do
    not mix. The surface is read from finer features too: stripes and dots are a few pixels wide.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Sequential(_block(3, 32, 2), _block(32, FINE, 2), _block(FINE, FINE, 1))
        self.coarse = nn.Sequential(_block(FINE, WIDTH, 2), _block(WIDTH, WIDTH, 1), _block(WIDTH, WIDTH, 1))
        self.places = nn.Conv2d(WIDTH, 2 * len(OBJECT_NAMES), 1)
        self.object = nn.Linear(WIDTH, len(OBJECT_NAMES))
        self.colour = _head(WIDTH + FINE, len(COLOUR_NAMES))
        self.style = _head(WIDTH + FINE, len(STYLE_NAMES))
        self.background = nn.Linear(2 * WIDTH, len(BACKGROUND_NAMES))
        self.garbage = _head(2 * WIDTH, 1)

    def forward(self, pictures: Tensor) -> Logits:
        """Judge pictures [B, 3, 64, 64] in [-1, 1]."""
        fine = self.fine(pictures)
        features = self.coarse(fine)
        both = torch.cat([features, F.avg_pool2d(fine, 2)], dim=1).flatten(2)
        for_object, for_surface = self.places(features).flatten(2).softmax(dim=2).chunk(2, dim=1)
        features = features.flatten(2)
        found = torch.einsum("bop,bfp->bof", for_object, features)
        surface = torch.einsum("bop,bfp->bof", for_surface, both)
        presence = torch.einsum("bof,of->bo", found, self.object.weight) + self.object.bias
        overall = torch.cat([features.mean(dim=2), features.amax(dim=2)], dim=1)
        garbage = self.garbage(overall).squeeze(1)
        return Logits(presence, self.colour(surface), self.style(surface), self.background(overall), garbage)


def _verdict(logits: Logits, row: int) -> Verdict:
    present = (logits.presence[row] > 0).nonzero().flatten().tolist()
    colours, styles = logits.colour[row].argmax(dim=1), logits.style[row].argmax(dim=1)
    things = tuple(Seen(OBJECT_NAMES[i], COLOUR_NAMES[colours[i]], STYLE_NAMES[styles[i]]) for i in present)
    return Verdict(things, BACKGROUND_NAMES[int(logits.background[row].argmax())], bool(logits.garbage[row] > 0))


class Judge:
    """The trained network; call it with uint8 pictures [B, 3, 64, 64]."""

    def __init__(self, net: JudgeNet) -> None:
        self.net = net.float().requires_grad_(False).eval()

    @torch.inference_mode()
    def __call__(self, pictures: Tensor) -> list[Verdict]:
        verdicts: list[Verdict] = []
        for batch in pictures.split(BATCH):
            logits = self.net(batch.float() / 127.5 - 1)
            verdicts += [_verdict(logits, row) for row in range(len(batch))]
        return verdicts


def load_judge(path: Path = MODEL_DIR / "judge.safetensors") -> Judge:
    """Read the bundled judge."""
    net = JudgeNet()
    net.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()})
    return Judge(net)
