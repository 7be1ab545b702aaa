"""Which prompts a pool of trajectories holds, and what drawing it costs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from erasure_core import Concept, DeltaSet
from erasure_core.hosts.diffusers import DiffusersModel
from erasure_core.methods import find_method
from erasure_core.progress import Silent
from erasure_core.trainer import Trainer
from erasure_core.trajectory import EMPTY, PROMPT, WITHOUT, PoolSettings, TrajectoryPool, draw_pool

SMALL: dict[str, Any] = {"rank": 2, "trajectories": 12, "trajectory_steps": 2, "batch": 2, "steps": 1}


def texts(pool: TrajectoryPool) -> set[str]:
    return {pool.texts[prompt] for prompt in pool.prompts}


@pytest.mark.parametrize("seed", range(5))
def test_what_users_type_and_keep_is_in_every_pool(pico: DiffusersModel, seed: int) -> None:
    concept = Concept(
        ("ball", "orb"), None, ("a red box", "a cat", "the dog"), neighbours=("a crate", "a kitten", "a hat")
    )
    method = find_method("esd")
    with pico.trainable():
        settings = method.settings(**SMALL, seed=seed)
        trainer = Trainer(pico, concept, method, settings, Silent())  # type: ignore[arg-type]
        with trainer.deltas.attached(trainer.layers):
            trainer.begin()
            trainer.refresh_pools()
    assert len(trainer.sayings) > SMALL["trajectories"], "not all have room"
    assert {"ball", "orb", "a ball", "an orb" if "an orb" in trainer.sayings else "a orb"} <= texts(
        trainer.pools["concept"]
    )
    assert {"", *concept.keep} <= texts(trainer.pools["kept"])


def test_of_more_leading_prompts_than_fill_half_a_pool_a_part_is_in_it(pico: DiffusersModel) -> None:
    prompts = [
        f"a {word}" for word in ("cat", "dog", "box", "hat", "ball", "orb", "red cat", "red dog", "red box", "red hat")
    ]
    roles = {EMPTY: [""] * len(prompts), PROMPT: prompts}
    chance = torch.Generator().manual_seed(0)
    with pico.trainable():
        pools = [draw_pool(pico, roles, PoolSettings(4, 1), chance, Silent(), DeltaSet({}), always=8) for _ in range(6)]
    for pool in pools:
        assert len(texts(pool)) == 4 and len(texts(pool) & set(prompts[:8])) >= 2
        assert prompts[0] in texts(pool), "the very first, which is the empty one where prompts are kept"
    assert len({frozenset(texts(pool)) for pool in pools}) > 1


def test_what_asks_nothing_more_than_the_empty_prompt_is_asked_once(
    pico: DiffusersModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    roles = {EMPTY: [""] * 3, PROMPT: ["ball", "a red ball", "a ball"], WITHOUT: ["", "a red", ""]}
    asked: list[int] = []
    predict = pico.predict
    monkeypatch.setattr(pico, "predict", lambda z, t, c: asked.append(len(z)) or predict(z, t, c))  # type: ignore[func-returns-value]
    with pico.trainable():
        pool = draw_pool(pico, roles, PoolSettings(3, 1), torch.Generator().manual_seed(0), Silent(), DeltaSet({}))
    assert asked == [7], "three, three and one"
    alone = [i for i, prompt in enumerate(pool.prompts) if not roles[WITHOUT][prompt]]
    (beside,) = set(range(3)) - set(alone)
    assert torch.equal(pool.teacher[WITHOUT][alone], pool.teacher[EMPTY][alone])
    state, t = pool.states[beside, 0][None], pool.timesteps[:1]
    with torch.no_grad():
        expected = predict(state, t, pico.encode(["a red"]))
    torch.testing.assert_close(pool.teacher[WITHOUT][beside, 0][None], expected, atol=1e-5, rtol=1e-4)
