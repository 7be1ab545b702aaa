"""The benchmark in small: short runs hold their bounds, and one wrong sign in a loss breaks them."""

from __future__ import annotations

import pytest

from erasure_core.errors import TrainingFailed
from erasure_core.hosts.diffusers import DiffusersModel
from erasure_core.methods import RECOMMENDED
from proving_ground.check import FLIPS, GROUPS, bounded, erased, measured
from proving_ground.evaluation import Evaluation
from proving_ground.judge import Judge


@pytest.fixture(scope="module")
def untouched(world_model: DiffusersModel, judge: Judge) -> Evaluation:
    return measured(world_model, judge)


def test_the_untouched_model_paints_what_it_is_asked_for(untouched: Evaluation) -> None:
    """Else a low leak would mean nothing."""
    assert untouched.shares["named"].share > 0.7 and untouched.intact.share > 0.7
    assert untouched.shares["kept"].share > 0.8 and untouched.unasked.share < 0.05


@pytest.mark.parametrize("method", ["esd", "closed_form", RECOMMENDED])
def test_a_short_run_holds_the_bounds(
    world_model: DiffusersModel, judge: Judge, untouched: Evaluation, method: str
) -> None:
    figures = bounded(measured(world_model, judge, erased(world_model, method)), untouched)
    assert not [figure.line() for figure in figures if not figure.reached]


@pytest.mark.parametrize(("method", "flip"), [*(("esd", flip) for flip in FLIPS), (RECOMMENDED, "erase")])
def test_a_flipped_sign_breaks_the_bounds(
    world_model: DiffusersModel, judge: Judge, untouched: Evaluation, method: str, flip: str
) -> None:
    try:
        deltas = erased(world_model, method, flip)
    except TrainingFailed:
        return  # a loss that falls without end may leave the numbers: that fails too
    for group in GROUPS:  # one missed bound is enough
        if not all(figure.reached for figure in bounded(measured(world_model, judge, deltas, [group]), untouched)):
            return
    pytest.fail("all bounds hold")
