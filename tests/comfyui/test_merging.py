"""A profile behind nodes that merge models: how much of it is on the weights in the end, as the host adds them up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from fake_comfy import LoRAAdapter, ModelPatcher, calculate_weight, merge_add, merge_simple, merge_subtract
from pack_nodes import Nodes, instant

Guard = Callable[[ModelPatcher], ModelPatcher]


def change_of(patcher: ModelPatcher, key: str) -> torch.Tensor:
    weight = patcher.model.state_dict()[key].float()
    return (calculate_weight(patcher.patches.get(key, []), weight.clone(), key) - weight).detach()


@pytest.fixture
def guard(nodes: Nodes, graph: dict[str, Any], profile: str) -> Guard:
    """What the server puts behind every node."""
    digest = nodes.profiles.load_profile(profile).digest()

    def guarded(model: ModelPatcher) -> ModelPatcher:
        return nodes.run("ServerProfile", profile=profile, digest=digest, model=model, clip=graph["clip"]).args[0]

    return guarded


@pytest.fixture
def share(guard: Guard, graph: dict[str, Any]) -> Callable[[ModelPatcher], float]:
    """How often a model has the profile's change, by its numbers."""
    whole = guard(graph["model"])
    changes = {key: change_of(whole, key) for key in whole.patches}

    def measured(patcher: ModelPatcher) -> float:
        found = sum(float((change_of(patcher, key) * change).sum()) for key, change in changes.items())
        return found / sum(float(change.square().sum()) for change in changes.values())

    return measured


def test_no_chain_of_merges_takes_a_profile_off(guard: Guard, graph: dict[str, Any], share: Any) -> None:
    """Merged with itself a model seemed to lack the profile, got it twice, and the difference took it off."""
    safe = guard(graph["model"])
    twice = guard(merge_simple(safe, safe, 0.5))
    difference = guard(merge_subtract(safe, twice))
    assert share(guard(merge_add(safe, difference))) == pytest.approx(1, abs=1e-3)


def test_models_that_carry_a_profile_carry_it_once_when_they_are_merged(
    guard: Guard, graph: dict[str, Any], share: Any
) -> None:
    safe = guard(graph["model"])
    for ratio in (0.0, 0.3, 1.0):
        merged = merge_simple(safe, safe, ratio)
        assert guard(merged) is merged and share(merged) == pytest.approx(1, abs=1e-3)
    assert share(guard(merge_add(safe, guard(merge_subtract(safe, safe))))) == pytest.approx(1, abs=1e-3)


def test_what_a_merge_with_an_unguarded_model_took_is_put_back(guard: Guard, graph: dict[str, Any], share: Any) -> None:
    safe = guard(graph["model"])
    for merged in (merge_simple(safe, graph["model"], 0.25), merge_simple(graph["model"], safe, 0.25)):
        assert 0.2 < share(merged) < 0.8 and share(guard(merged)) == pytest.approx(1, abs=1e-3)


def test_a_profiles_own_file_cannot_be_taken_off_again(
    nodes: Nodes, guard: Guard, graph: dict[str, Any], share: Any
) -> None:
    """With a negative strength, by our node or by the host's own Load LoRA, whose factor is another one."""
    erasure = instant(nodes, graph).args[2]
    safe = guard(graph["model"])
    off = nodes.run("Apply", model=safe, erasure=erasure, strength=-1.0, clip=graph["clip"]).args[0]
    assert share(off) < 0.9 and share(guard(off)) == pytest.approx(1, abs=1e-3)
    loaded = safe.clone()
    for key, held in safe.patches.items():
        up, down, alpha = held[0][1].weights[:3]
        weights = (up.half().clone(), down.half().clone(), 2 * alpha, None, None, None)
        loaded.add_patches({key: LoRAAdapter(set(), weights)}, -0.5)
    assert share(loaded) < 0.9 and share(guard(loaded)) == pytest.approx(1, abs=1e-3)


def test_a_profiles_own_file_cannot_be_taken_off_for_a_part_of_the_sampling(
    nodes: Nodes, guard: Guard, graph: dict[str, Any]
) -> None:
    links = {"model": guard(graph["model"]), "clip": graph["clip"], "start": 0.01}
    erasure, other = instant(nodes, graph).args[2], instant(nodes, graph, "dog").args[2]
    for harmless in ({"erasure": erasure}, {"erasure": other, "strength": -1.0}):
        limited = nodes.run("Apply", **links, **harmless).args[0]
        assert guard(limited) is limited
    off = nodes.run("Apply", **links, erasure=erasure, strength=-1.0).args[0]
    with pytest.raises(nodes.profiles.ProfileFailed, match="takes one of its files back"):
        guard(off)


def test_what_is_on_a_model_more_often_than_asked_for_stays(nodes: Nodes, guard: Guard, graph: dict[str, Any]) -> None:
    more = nodes.run("Apply", model=guard(graph["model"]), erasure=instant(nodes, graph).args[2], clip=graph["clip"])
    assert guard(more.args[0]) is more.args[0]


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_factors_that_are_no_numbers_stop_the_graph(
    nodes: Nodes, guard: Guard, graph: dict[str, Any], factor: float
) -> None:
    safe = guard(graph["model"])
    with pytest.raises(nodes.profiles.ProfileFailed, match="no number"):
        guard(merge_simple(safe, safe, factor))


def test_what_cannot_be_counted_stops_the_graph(nodes: Nodes, guard: Guard, graph: dict[str, Any]) -> None:
    safe = guard(graph["model"])
    for patch in ((1.0, None, 0.5), (1.0, ("set", (torch.zeros(1),)), 1.0)):
        part = safe.clone()
        key = next(iter(part.patches))
        strength, value, scale = patch
        part.patches[key].append((strength, value or ("diff", (torch.zeros(1),)), scale, (0, 0, 1), None))
        with pytest.raises(nodes.profiles.ProfileFailed, match="cannot be told"):
            guard(part)


def test_patches_without_a_change_are_no_obstacle(guard: Guard, graph: dict[str, Any], share: Any) -> None:
    """The host's nodes that multiply attention scale a weight and add nothing."""
    scaled = guard(graph["model"])
    key = next(iter(scaled.patches))
    scaled.patches[key] = [*scaled.patches[key], (0.0, (None,), 0.5, None, None)]
    assert guard(scaled) is scaled, "half of the weight with half of its change is no less erased"


def test_a_merged_model_that_carries_an_erasure_is_told_of(nodes: Nodes, graph: dict[str, Any]) -> None:
    """A Report Card would count it twice."""
    made = instant(nodes, graph)
    merged = merge_simple(graph["model"], made.args[0], 0.5)
    with pytest.raises(nodes.core.ModelError, match="count twice"):
        nodes.run("Purify", model=merged, clip=graph["clip"], vae=graph["vae"], image=torch.zeros(1, 64, 64, 3),
                  caption="a ball", erasure=made.args[2], steps=2, resolution=64)  # fmt: skip


def test_a_file_that_a_profile_names_twice_counts_twice(nodes: Nodes, graph: dict[str, Any]) -> None:
    erasure = instant(nodes, graph).args[2]
    stack = nodes.run("Stack", first=erasure, second=erasure, strength_second=0.5).args[0]
    nodes.run("SaveSafetyProfile", erasure=stack, name="strong")
    once = nodes.run("SafetyProfile", model=graph["model"], clip=graph["clip"], profile="strong").args[0]
    applied = nodes.run("Apply", model=graph["model"], erasure=erasure, clip=graph["clip"], strength=1.5).args[0]
    key = next(iter(once.patches))
    assert torch.allclose(change_of(once, key), change_of(applied, key), atol=1e-6)
    again = nodes.run("SafetyProfile", model=once, clip=graph["clip"], profile="strong").args[0]
    assert again is once
