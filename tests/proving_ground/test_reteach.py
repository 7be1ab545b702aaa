"""Teaching an erased model again, in the shortest form: what it comes to is measured elsewhere, that it runs is not."""

from __future__ import annotations

import torch

from erasure_core.delta import DeltaSet, LowRankDelta
from erasure_core.hosts.diffusers import DiffusersModel
from proving_ground.judge import Judge
from proving_ground.reteach import measure, train_lora


def test_two_steps_make_a_lora_and_leave_the_model_as_it_was(world_model: DiffusersModel) -> None:
    before = {name: weight.clone() for name, weight in world_model.unet.state_dict().items()}
    latents = torch.randn(2, *world_model.latent_shape, generator=torch.Generator().manual_seed(0))
    lora = train_lora(world_model, DeltaSet({}), latents, ["a ball", "a red ball"], steps=2, rank=2)
    assert lora.changed()
    assert all(isinstance(delta, LowRankDelta) and delta.rank == 2 for delta in lora.deltas.values())
    assert all(torch.equal(weight, before[name]) for name, weight in world_model.unet.state_dict().items())


def test_it_tells_what_the_judge_sees_in_each_state(world_model: DiffusersModel, judge: Judge) -> None:
    shares = measure("ball", "closed_form", pictures=2, steps=2, count=2)
    assert set(shares) == {"untouched", "erased", "erased, then the LoRA"}
    assert all(0.0 <= share <= 1.0 for share in shares.values())
