"""The closed form against the layer-by-layer formula of the paper in float64."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from erasure_core import Concept
from erasure_core.delta import weight_of
from erasure_core.erasing import erase
from erasure_core.errors import InvalidConcept, ModelError
from erasure_core.hosts.diffusers import DiffusersModel
from erasure_core.layers import select
from erasure_core.methods import METHODS
from erasure_core.methods.closed_form import (
    ClosedFormSettings,
    _leading,
    kept_rows,
    partings,
    solved_change,
    subject_rows,
)
from erasure_core.model import Conditioning

CONCEPT = Concept(("ball", "red orb"), "box", ("a red box", "a cat"))


def uce(weight: Tensor, concept: Tensor, instead: Tensor, kept: Tensor, damping: float) -> Tensor:
    """UCE's update of one weight, written as in the paper (rows of the arguments are vectors)."""
    identity = torch.eye(weight.shape[1], dtype=torch.float64)
    left, right = damping * weight.clone(), damping * identity
    for c, a in zip(concept, instead, strict=True):
        left += torch.outer(weight @ a, c)
        right += torch.outer(c, c)
    for r in kept:
        left += torch.outer(weight @ r, r)
        right += torch.outer(r, r)
    return left @ torch.linalg.inv(right)


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize("damping", [0.01, 0.5])
def test_equals_the_layer_by_layer_formula(pico_models: dict[str, DiffusersModel], family: str, damping: float) -> None:
    model = pico_models[family]
    settings = ClosedFormSettings(damping=damping, keep_weight=0.5, tolerance=0.0, contexts=4, neighbours=0)
    erasure, _ = erase(model, CONCEPT, "closed_form", settings)
    with torch.no_grad():
        said = CONCEPT.sayings(4)
        concept, instead = subject_rows(model.encode([s.prompt for s in said]), model.encode([s.instead for s in said]))
        keep = dict.fromkeys([*CONCEPT.kept_prompts, *(s.without for s in said)])
        kept = kept_rows([model.encode(list(keep))]) * 0.5**0.5
        for name, layer in select(model.layers(), "cross-attention-kv").items():
            weight = weight_of(layer).double()
            expected = uce(weight, concept, instead, kept, damping) - weight
            found = erasure.deltas[name].change().double()
            assert (found - expected).abs().max() < 1e-5 * weight.abs().max()


@torch.no_grad()
def test_where_prompts_part_is_told_by_their_tokens(pico: DiffusersModel) -> None:
    """In 16 bits equal words before the concept are not encoded to equal bits."""
    prompts, others = ["a red ball", "a ball", "ball"], ["a red box", "a", ""]
    parted = partings(pico, prompts, others)
    assert parted == [3, 2, 1]
    exact, instead = pico.encode(prompts), pico.encode(others)
    rounded = replace(exact, context=exact.context + 1e-2 * torch.randn_like(exact.context))
    wanted, found = subject_rows(exact, instead, parted), subject_rows(rounded, instead, parted)
    assert [len(rows) for rows in found] == [len(rows) for rows in wanted]
    assert torch.equal(found[1], wanted[1])


def random_rows(*counts: int, width: int = 24) -> list[Tensor]:
    """Token vectors of which some directions are much commoner than others, as those of a text encoder."""
    generator = torch.Generator().manual_seed(0)
    common = torch.logspace(0, -2, width, dtype=torch.float64)
    return [torch.randn(count, width, dtype=torch.float64, generator=generator) * common for count in counts]


def objective(change: Tensor, concept: Tensor, instead: Tensor, kept: Tensor, damping: float = 0.1) -> Tensor:
    """What UCE minimises, for a weight that is the identity."""
    missed = concept + concept @ change.T - instead
    return missed.square().sum() + (kept @ change.T).square().sum() + damping * change.square().sum()


@pytest.mark.parametrize("count", [5, 60])
def test_fewer_and_more_concept_vectors_than_the_width(count: int) -> None:
    concept, instead, kept = random_rows(count, count, 7)
    identity = torch.eye(24, dtype=torch.float64)
    moment = concept.T @ concept + kept.T @ kept + 0.1 * identity
    expected = (instead - concept).T @ concept @ torch.linalg.inv(moment)
    up, down = solved_change(concept, instead, kept, 0.1)
    assert up.shape[1] == len(down) == min(count, 24)
    torch.testing.assert_close(up @ down, expected, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("rank", [1, 3, 9])
def test_no_change_of_that_rank_serves_the_objective_better(rank: int) -> None:
    """The gradient of the objective along every change of the two factors is zero, and the singular value
    decomposition's cut is worse."""
    rows = random_rows(40, 40, 30)
    factors = [factor.requires_grad_() for factor in solved_change(*rows, 0.1, rank=rank)]
    reached = objective(factors[0] @ factors[1], *rows)
    for slope in torch.autograd.grad(reached, factors):
        assert slope.abs().max() < 1e-8 * reached
    up, down = solved_change(*rows, 0.1)
    u, s, vh = torch.linalg.svd(up @ down)
    assert reached < 0.99 * objective((u[:, :rank] * s[:rank]) @ vh[:rank], *rows)


@pytest.mark.parametrize("width", [24, 1200])
def test_the_tolerance_is_what_a_lower_rank_may_cost(width: int) -> None:
    """At 1,200 by random projection."""
    rows = random_rows(90, 90, 60, width=width)
    start = objective(torch.zeros(width, width, dtype=torch.float64), *rows)
    full_up, full_down = solved_change(*rows, 0.1)
    gained = start - objective(full_up @ full_down, *rows)
    for tolerance in (0.3, 0.05):
        up, down = solved_change(*rows, 0.1, tolerance=tolerance)
        assert 1 < len(down) < len(full_down)
        assert start - objective(up @ down, *rows) >= (1 - 1.001 * tolerance) * gained
        assert start - objective(up[:, :-1] @ down[:-1], *rows) < (1 - tolerance) * gained


def test_with_room_in_the_space_the_concept_moves_and_the_kept_stays() -> None:
    generator = torch.Generator().manual_seed(0)
    concept, instead, kept = (torch.randn(n, 64, dtype=torch.float64, generator=generator) for n in (5, 5, 9))
    up, down = solved_change(concept, instead, kept, 1e-6)
    torch.testing.assert_close(concept + concept @ (up @ down).T, instead, atol=1e-4, rtol=1e-4)
    assert (kept @ (up @ down).T).abs().max() < 1e-4


def test_rank_limit_holds(pico: DiffusersModel) -> None:
    erasure, _ = erase(pico, CONCEPT, "closed_form", ClosedFormSettings(rank=2))
    assert {delta.rank for delta in erasure.deltas.deltas.values()} == {2}  # type: ignore[attr-defined]


def test_an_alternative_that_the_model_reads_as_the_concept_is_told(pico: DiffusersModel) -> None:
    """Spaces around a hyphen are the same to a tokenizer."""
    with pytest.raises(InvalidConcept, match="changes nothing"):
        erase(pico, Concept(("red-ball",), "red - ball"), "closed_form", ClosedFormSettings(neighbours=0))


def test_a_word_that_is_nothing_to_the_model_is_refused(pico: DiffusersModel) -> None:
    """The pico vocabulary puts the end token in its place: erasing that would change the empty prompt."""
    with pytest.raises(InvalidConcept, match="no token for '猫'"):
        erase(pico, Concept(("ball", "猫")), "closed_form")
    with pytest.raises(InvalidConcept, match="no token for '猫'"):
        erase(pico, Concept(("red 猫",)), "closed_form")  # it would be "red" that is erased
    with pytest.raises(InvalidConcept, match="no token for '猫'"):
        erase(pico, Concept(("ball",), "猫"), "closed_form")


def test_the_hosts_generators_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its next pictures would else all begin from the same noise."""
    seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    matrix = torch.randn(1100, 8) @ torch.randn(8, 1100)
    before = torch.get_rng_state()
    assert _leading(matrix, 1100, 0.01).shape[1] <= 8
    assert not seeded and torch.equal(torch.get_rng_state(), before)


def test_kept_prompts_are_read_some_at_a_time(pico: DiffusersModel) -> None:
    prompts = [f"a {word} ball" for word in ("red", "blue", "green")]
    whole, pieces = kept_rows([pico.encode(prompts)]), kept_rows(pico.encode([prompt]) for prompt in prompts)
    torch.testing.assert_close(whole, pieces)
    assert len(whole) < 3 * 77, "what all prompts share stands there once"


@pytest.mark.parametrize("method", ["closed_form", "rece"])
def test_a_damaged_text_encoder_is_told(pico: DiffusersModel, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    exact = pico.encode

    def damaged(prompts: Sequence[str]) -> Conditioning:
        rows = exact(prompts)
        return replace(rows, context=rows.context * float("nan"))

    monkeypatch.setattr(pico, "encode", damaged)
    with pytest.raises(ModelError, match="no finite numbers"):
        erase(pico, CONCEPT, method, METHODS[method].settings(neighbours=0))


def test_a_damping_that_rounding_would_swallow() -> None:
    """Fewer token vectors than the width, 1e5 times as long as those of most models."""
    rows = [1e5 * each for each in random_rows(5, 5, 7)]
    up, down = solved_change(*rows, 1e-8)
    assert (rows[0] + rows[0] @ (up @ down).T - rows[1]).norm() < 1e-3 * rows[1].norm()


def test_nothing_to_move_moves_nothing() -> None:
    none, kept = torch.zeros(0, 8, dtype=torch.float64), torch.eye(8, dtype=torch.float64)
    up, down = solved_change(none, none, kept, 0.1)
    assert up.shape == (8, 1) and down.shape == (1, 8) and not (up @ down).any()
