"""Which prompts have their turn in a pool."""

from __future__ import annotations

from collections import Counter

import torch
from hypothesis import given
from hypothesis import strategies as st

from erasure_core import Concept
from erasure_core.hosts.diffusers import DiffusersModel
from erasure_core.methods import find_method
from erasure_core.progress import Silent
from erasure_core.trainer import Trainer
from erasure_core.trajectory import PROMPT, taking_turns


def test_a_small_group_is_not_lost_among_many_others() -> None:
    groups = [range(3), range(3, 10), range(10, 200)]
    drawn = taking_turns(groups, 20, torch.Generator().manual_seed(0))
    assert set(drawn) >= set(range(10)) and len(set(drawn)) == 20


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(1, 60), st.integers(0, 99))
def test_no_prompt_has_a_second_turn_before_all_had_one(sizes: list[int], count: int, seed: int) -> None:
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    groups = [range(start, start + size) for start, size in zip(starts, sizes, strict=True)]
    turns = Counter(taking_turns(groups, count, torch.Generator().manual_seed(seed)))
    assert sum(turns.values()) == count
    assert max(turns.values()) <= -(-count // sum(sizes)) and len(turns) == min(count, sum(sizes))


def test_pools_share_out_by_where_the_concept_is_said_and_by_who_keeps(pico: DiffusersModel) -> None:
    concept = Concept(("ball", "orb"), "box", ("a red house", "a dog"), neighbours=("a red hut", "a cat"))
    settings = find_method("esd").settings(contexts=12, rank=2, trajectories=4, trajectory_steps=2)
    with pico.trainable():
        trainer = Trainer(pico, concept, find_method("esd"), settings, Silent())  # type: ignore[arg-type]
        groups, roles = trainer.pool_groups(), trainer.pool_roles()
    for name, parts in groups.items():
        assert sorted(place for part in parts for place in part) == list(range(len(roles[name][PROMPT])))
    kept = [[roles["kept"][PROMPT][place] for place in part] for part in groups["kept"]]
    assert kept[0] == ["", "a red house", "a dog"] and kept[1] == ["a red hut", "a cat"]
    beside = [roles["concept"][PROMPT][place] for place in groups["concept"][2]]
    assert len(groups["concept"]) == 4 and all("next to" in prompt or " and a " in prompt for prompt in beside)
