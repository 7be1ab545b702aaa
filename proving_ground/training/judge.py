"""Trains the judge on fresh renders and on autoencoder reconstructions, sound and ruined."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..judge import JudgeNet, Logits
from ..lexicon import BACKGROUND_NAMES, COLOUR_NAMES, OBJECT_NAMES, STYLE_NAMES
from ..render import render
from ..scene import Scene, sample_scene
from .autoencoder import new_autoencoder
from .data import pick, to_model_range
from .garbage import ruin
from .latents import decode, encode, kept_on_disk
from .loop import mixed_precision, train
from .state import load_average

STEPS = 4500
BATCH = 64
FRESH = 20_000
RECONSTRUCTED = 6_000
RUINED_LATENTS = 1_000
RUINED = 0.3
"""Share of pictures ruined while training."""
EMPTY = 0.06
"""Share of scenes without any thing."""
IGNORED = -100


@dataclass(frozen=True)
class Labels:
    """What N scenes show: presence, colour and style of each object [N, O] (IGNORED if absent), background [N]."""

    presence: Tensor
    colour: Tensor
    style: Tensor
    background: Tensor

    def __getitem__(self, rows: list[int]) -> Labels:
        return Labels(self.presence[rows], self.colour[rows], self.style[rows], self.background[rows])


def labels_of(drawn: list[Scene]) -> Labels:
    presence = torch.zeros(len(drawn), len(OBJECT_NAMES))
    colour = torch.full(presence.shape, IGNORED)
    style = colour.clone()
    for row, scene in enumerate(drawn):
        for thing in scene.things:
            column = OBJECT_NAMES.index(thing.object)
            presence[row, column] = 1
            colour[row, column] = COLOUR_NAMES.index(thing.colour)
            style[row, column] = STYLE_NAMES.index(thing.style)
    background = torch.tensor([BACKGROUND_NAMES.index(scene.background) for scene in drawn])
    return Labels(presence, colour, style, background)


def judged_scenes(seed: int, count: int, empty: float = EMPTY) -> tuple[list[Scene], Tensor]:
    """Scenes, a few of them empty, and their pictures, uint8 [count, 3, 64, 64]."""
    rng = random.Random(seed)
    drawn = [sample_scene(rng) for _ in range(count)]
    drawn = [Scene(scene.background, ()) if rng.random() < empty else scene for scene in drawn]
    pictures = torch.from_numpy(np.stack([render(scene) for scene in drawn]))
    return drawn, pictures.permute(0, 3, 1, 2).contiguous()


def _ruin_latents(latents: Tensor, generator: torch.Generator) -> Tensor:
    """Half of the latents mixed with noise, half with another picture's: what a broken denoiser leaves."""
    noise = torch.randn(latents.shape, generator=generator) * latents.std()
    other = torch.where(torch.arange(len(latents)).view(-1, 1, 1, 1) % 2 == 0, noise, latents.roll(1, dims=0))
    return 0.5**0.5 * (latents + other)


def reconstructions(pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Autoencoder reconstructions of uint8 pictures [N, 3, 64, 64], and decoded ruined latents; kept on disk."""
    autoencoder = new_autoencoder()
    load_average("autoencoder", autoencoder)

    def decoded(latents: Tensor) -> Tensor:
        return torch.cat([decode(autoencoder, batch) for batch in latents.split(50)])

    def make() -> dict[str, Tensor]:
        latents = torch.cat([encode(autoencoder, batch) for batch in pictures.split(50)])
        broken = _ruin_latents(latents[:RUINED_LATENTS], torch.Generator().manual_seed(0))
        return {"sound": decoded(latents), "ruined": decoded(broken)}

    kept = kept_on_disk("reconstructions", autoencoder, len(pictures), make)
    return kept["sound"], kept["ruined"]


def augment(pictures: Tensor) -> Tensor:
    """Slight changes of brightness, contrast, sharpness and noise, which must not change the verdict."""
    shape = (len(pictures), 1, 1, 1)
    gain, shift = torch.empty(shape).uniform_(0.93, 1.07), torch.empty(shape).uniform_(-0.05, 0.05)
    soft = F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    pictures = torch.lerp(pictures, soft, torch.rand(shape) * 0.5)
    noise = torch.rand(shape) * 0.05 * torch.randn_like(pictures)
    return (pictures * gain + shift + noise).clamp(-1, 1)


def judge_loss(logits: Logits, labels: Labels, garbage: Tensor) -> Tensor:
    """Sum of the errors of all outputs; a ruined picture teaches only that it is ruined."""
    sound = garbage == 0

    def named(scores: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(scores[sound].float().flatten(0, -2), target[sound].flatten(), ignore_index=IGNORED)

    presence = F.binary_cross_entropy_with_logits(logits.presence[sound].float(), labels.presence[sound])
    ruined = F.binary_cross_entropy_with_logits(logits.garbage.float(), garbage)
    attributes = named(logits.colour, labels.colour) + named(logits.style, labels.style)
    return len(OBJECT_NAMES) * presence + attributes + named(logits.background, labels.background) + ruined


@dataclass(frozen=True)
class JudgeData:
    """Pictures to judge: N fresh renders with scenes and labels, reconstructions of the first M, ruined latents."""

    drawn: list[Scene]
    labels: Labels
    fresh: Tensor
    rebuilt: Tensor
    ruined: Tensor

    def _pictures(self, chosen: list[int], rng: random.Random) -> Tensor:
        """Pictures in [-1, 1]; a scene that has a reconstruction mostly gives that."""
        use_rebuilt = [i < len(self.rebuilt) and rng.random() < 0.8 for i in chosen]
        source = [(self.rebuilt if again else self.fresh)[i] for i, again in zip(chosen, use_rebuilt, strict=True)]
        return to_model_range(torch.stack(source))

    def batch(self, step: int) -> tuple[Tensor, Labels, Tensor]:
        """Pictures [B, 3, 64, 64], what they show, and 1 for each that is ruined, [B]."""
        rng = random.Random(step)
        chosen = pick(step, BATCH // 2, len(self.fresh)) + pick(step, BATCH // 2, len(self.rebuilt))
        rng.shuffle(chosen)
        pictures = self._pictures(chosen, rng)
        spoilt = [place for place, i in enumerate(chosen) if self.drawn[i].things and rng.random() < RUINED]
        pictures[spoilt] = ruin(pictures[spoilt], [self.drawn[chosen[place]] for place in spoilt], rng)
        broken = torch.randint(BATCH, (BATCH // 16,))
        pictures[broken] = to_model_range(self.ruined[torch.randint(len(self.ruined), broken.shape)])
        garbage = torch.zeros(BATCH)
        garbage[spoilt] = garbage[broken] = 1
        return augment(pictures), self.labels[chosen], garbage


def judge_data(fresh: int = FRESH, reconstructed: int = RECONSTRUCTED) -> JudgeData:
    """Everything that the judge is trained on."""
    drawn, pictures = judged_scenes(3, fresh)
    return JudgeData(drawn, labels_of(drawn), pictures, *reconstructions(pictures[:reconstructed]))


def train_judge(
    deadline: float | None = None, steps: int = STEPS, data: JudgeData | None = None
) -> tuple[JudgeNet, bool]:
    """Train on half fresh and half reconstructed pictures. Returns the network and whether training is complete."""
    kept = data or judge_data()
    torch.manual_seed(0)
    net = JudgeNet().to(memory_format=torch.channels_last)

    def loss_at(step: int) -> Tensor:
        pictures, labels, garbage = kept.batch(step)
        with mixed_precision():
            logits = net(pictures.contiguous(memory_format=torch.channels_last))
            return judge_loss(logits, labels, garbage)

    complete = train("judge", net, loss_at, steps, peak_rate=2e-3, decay=0.998, deadline=deadline)
    return net.eval(), complete
