"""What a LoRA teaches an erased model again: ``python -m proving_ground.reteach``.

Whoever has the weights can train them. A LoRA on a few pictures of the concept, made by the untouched model, is the
least that an owner of such pictures would do.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

import torch
from torch.nn import functional as F

from erasure_core import DeltaSet, erase
from erasure_core.delta import new_deltas
from erasure_core.erasing import applied
from erasure_core.hosts.diffusers import DiffusersModel
from erasure_core.layers import select
from erasure_core.methods import find_method
from erasure_core.rates import rate_groups

from .bench import concept_of
from .evaluation import evaluate, questions
from .judge import load_judge
from .lexicon import CONCEPTS
from .painting import load_model, paint

LEARNING_RATE = 1e-3


def train_lora(
    model: DiffusersModel, erasure: DeltaSet, latents: torch.Tensor, prompts: Sequence[str], steps: int, rank: int = 8
) -> DeltaSet:
    """A LoRA on all of the cross-attention, trained on pictures of an erased model with the usual denoising loss.

    Args:
        model: the untouched model.
        erasure: hangs on it while the LoRA is trained.
        latents: clean latents [N, C, h, w] of the pictures.
        prompts: what is written below each picture.
        steps: optimiser steps with up to 8 pictures each.
        rank: of the LoRA.
    """
    chance = torch.Generator().manual_seed(0)
    with model.trainable(), applied(model, [(erasure, 1.0)]):
        layers = select(model.layers(), "cross-attention")
        lora = new_deltas(layers, rank, seed=0)
        optimizer = torch.optim.AdamW(rate_groups(layers, lora, LEARNING_RATE), weight_decay=0.0)
        conditioning = model.encode(list(prompts)).detach()
        with lora.attached(layers):
            for _ in range(steps):
                chosen = torch.randint(len(latents), (min(8, len(latents)),), generator=chance)
                t = torch.randint(len(model.schedule), (len(chosen),), generator=chance)
                noise = torch.randn(len(chosen), *model.latent_shape, generator=chance)
                z = model.schedule.add_noise(latents[chosen], noise, t)
                F.mse_loss(model.predict(z, t, conditioning[chosen.tolist()]), noise).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                optimizer.zero_grad()
    return lora


def measure(name: str, method: str, pictures: int, steps: int, count: int) -> dict[str, float]:
    """Shares of pictures in which the judge sees the concept: untouched, erased, and erased with the LoRA behind it."""
    model, judge, concept = load_model(), load_judge(), CONCEPTS[name]
    asked = [question.prompt for question in questions(concept, "named", pictures, seed=1000)]
    shown = paint(model, asked, range(1000, 1000 + pictures))
    erasure, _ = erase(model, concept_of(concept), method, find_method(method).settings())
    lora = train_lora(model, erasure.deltas, model.latents_of(shown), asked, steps)
    states = {
        "untouched": [],
        "erased": [(erasure.deltas, 1.0)],
        "erased, then the LoRA": [(erasure.deltas, 1.0), (lora, 1.0)],
    }
    return {
        state: evaluate(model, judge, concept, erasures, count, groups=("named",)).shares["named"].share
        for state, erasures in states.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m proving_ground.reteach", description=__doc__)
    parser.add_argument("--concept", default="ball", choices=list(CONCEPTS), metavar="CONCEPT")
    parser.add_argument("--method", default="closed_form")
    parser.add_argument("--pictures", type=int, default=16, help="pictures of the concept that the LoRA is trained on")
    parser.add_argument("--steps", type=int, default=100, help="optimiser steps of the LoRA")
    parser.add_argument("--count", type=int, default=48, help="pictures judged in each state")
    options = parser.parse_args()
    print(json.dumps(measure(options.concept, options.method, options.pictures, options.steps, options.count)))


if __name__ == "__main__":
    main()
