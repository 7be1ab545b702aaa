"""The speed benchmark in small: what it counts, what it measures, and that the documents hold its figures."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path

import pytest
import torch

import benchmarks.whole
from benchmarks import rows, solving, using
from benchmarks.__main__ import DOCS, RESULTS, main
from benchmarks.architectures import build, modules, trained_layers
from benchmarks.counting import STATES, shares
from benchmarks.documents import filled, solved_table, whole_table
from benchmarks.every_method import prediction
from benchmarks.execution import WAYS, ways
from benchmarks.floor import Work, count
from benchmarks.gpu_check import weights_hash
from benchmarks.ledger import Ledger
from benchmarks.machine import Rates
from benchmarks.meter import Meter
from benchmarks.parts import STUDENT, TRAJECTORY
from benchmarks.published import LOOPS, MEAN_STEPS, running
from benchmarks.rows import CONCEPT, pooled_latents
from benchmarks.whole import Stages, Whole, all_seconds, whole
from erasure_core import METHODS, Report, Silent, effort, erase
from erasure_core.hosts.diffusers import DiffusersModel
from erasure_core.methods.closed_form import ClosedFormSettings, closed_form
from erasure_core.methods.esd import EsdSettings
from erasure_core.trajectory import BOTH, GOAL, ORIGINAL, TRAINING


def test_the_ledger_counts_operations_bytes_and_waiting() -> None:
    a, b = torch.randn(10, 20), torch.randn(20, 30, requires_grad=True)
    with Ledger() as ledger:
        ledger.watch([a, b])
        product = a @ b
        assert ledger.live == 4 * (200 + 600 + 300)
        product.sum().backward()
        del product
        assert b.grad is not None and ledger.live < ledger.peak
        float(b.grad.sum())
    assert [operation.flops for operation in ledger.operations] == [2 * 10 * 20 * 30] * 2
    assert ledger.operations[0].moved == 4 * (200 + 600 + 300)
    assert ledger.read_backs == 1


def test_the_floor_is_the_slower_of_computing_and_moving() -> None:
    cost = count(Work("sd15", 64, 1, tiny=True))
    by_computing = cost.seconds(Rates(flops=1e9, bandwidth=1e18))
    by_moving = cost.seconds(Rates(flops=1e18, bandwidth=1e9))
    both = cost.seconds(Rates(flops=1e9, bandwidth=1e9))
    assert by_computing == pytest.approx(cost.flops / 1e9)
    assert max(by_computing, by_moving) < both < by_computing + by_moving


def test_counting_knows_what_training_and_recomputing_cost() -> None:
    once, kept, again = (
        count(Work("sd15", 128, 2, layers, checkpointing=recompute, tiny=True))
        for layers, recompute in ((None, False), ("cross-attention-kv", False), ("cross-attention-kv", True))
    )
    assert 1.8 * once.flops < kept.flops < 2.3 * once.flops, "the weights are frozen: no gradients of theirs"
    assert kept.flops < again.flops and again.peak < kept.peak


def test_what_was_not_built_would_save_little() -> None:
    """By hand: 16 blocks of SD1.5 read 77 tokens of width 768 into keys and values of 320, 640 and 1280 numbers."""
    widths = [*[320] * 5, *[640] * 5, *[1280] * 6]
    projected = sum(2 * 2 * 77 * 768 * width for width in widths)
    whole = count(Work("sd15", 512, 1)).flops
    found = shares("sd15")
    assert found["keys and values"] == pytest.approx(projected / whole, rel=1e-6)
    assert 0 < found["moments"] < found["keys and values"] < 0.01


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_the_bytes_that_low_vram_plans_with_are_those_counted_at_true_size(family: str) -> None:
    side = 512
    for checkpointing in (False, True):
        cost = count(Work(family, side, 1, "cross-attention-kv", checkpointing=checkpointing))
        trained = cost.peak - cost.weights
        planned = effort.KEPT[{"sd15": "sd1", "sdxl": "sdxl"}[family]][checkpointing] * (side // 8) ** 2
        assert 0.5 * trained < planned < 2 * trained


def test_true_sizes() -> None:
    with torch.device("meta"):
        sizes = {
            family: [sum(p.numel() for p in part.parameters()) for part in modules(family, 512, torch.bfloat16)]
            for family in ("sd15", "sd21", "sdxl")
        }
    assert sizes == {
        "sd15": [859_520_964, 123_060_480],
        "sd21": [865_910_724, 340_387_840],
        "sdxl": [2_567_463_684, 123_060_480, 694_659_840],
    }


@pytest.mark.parametrize(
    ("driver", "contexts", "alternative"),
    [(BOTH, 0, None), (ORIGINAL, 12, None), (GOAL, 12, "box"), (TRAINING, 12, None), (TRAINING, 0, "box")],
)
def test_the_pools_cost_is_that_of_their_calls(driver: str, contexts: int, alternative: str | None) -> None:
    """As a training really makes them: fewer trajectories than prompts, and the pools drawn twice. How many ask
    nothing more than the empty prompt is chance."""
    settings = EsdSettings(
        replace=False, steps=3, refresh=2, trajectories=4, trajectory_steps=2, contexts=contexts, driver=driver, batch=1
    )
    concept, meter = replace(CONCEPT, alternative=alternative), Meter("cpu")
    with meter.watching():
        erase(_small(), concept, "esd", settings)
    assert meter.latents[TRAJECTORY, False] == pytest.approx(
        settings.steps * pooled_latents(settings, concept), rel=0.15
    )
    assert meter.latents[STUDENT, True] == settings.steps * settings.batch * STATES, "what is counted is what is run"


@lru_cache
def _small() -> DiffusersModel:
    return build("sd15", 64, tiny=True)


@pytest.mark.parametrize("loop", LOOPS)
def test_published_loops_train_and_leave_the_model_alone(loop: str) -> None:
    model = build("sd15", 64, tiny=True)
    weights, before, meter = weights_hash(model), prediction(model), Meter("cpu")
    with running(loop, model, meter) as stepping:
        parameters = [p for group in stepping.optimizer.param_groups for p in group["params"]]
        start = [p.detach().clone() for p in parameters]
        with meter.watching():
            stepping.step(2)
        known = LOOPS[loop]
        beside = sum(count for (_, learns), count in meter.latents.items() if not learns)
        assert beside == known.pooled - (MEAN_STEPS - 2) * known.sampled, "what is counted is what is run"
        assert meter.latents[STUDENT, True] == known.asked
        assert any(not torch.equal(p, old) for p, old in zip(parameters, start, strict=True))
    assert weights_hash(model) == weights and torch.equal(prediction(model), before)


def test_the_loops_differ_as_their_scripts_do() -> None:
    """By hand: 25 sampling steps of one or two latents, and so many questions of one or two latents."""
    assert {name: (loop.pooled, loop.asked, loop.steps) for name, loop in LOOPS.items()} == {
        "esd": (25 * 2 + 2, 1, 200),
        "leco": (25 * 2 + 3 * 2, 2, 500),
        "co_erasing": (25 + 2, 1, 2000),
    }
    trained = trained_layers(build("sd15", 64, tiny=True), LOOPS["leco"].layers)
    ends = {name.rpartition(".")[2] for name in trained}
    assert {"proj_in", "to_q", "to_k", "proj_out"} <= ends and not any("resnets" in name for name in trained)


def test_run_and_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run.json"
    quick = ["--family", "sd15", "--tiny", "--size", "64", "--dtype", "float32", "--steps", "1", "--sampling", "2"]
    assert main(["run", *quick, "--method", "published esd", "esd", "closed_form", "--out", str(out)]) == 0
    (result,) = json.loads(out.read_text())
    rows = {row["name"]: row for row in result["rows"]}
    assert list(rows) == ["published esd", "esd", "closed_form"]
    for name in ("published esd", "esd"):
        assert sum(rows[name]["shares"].values()) == pytest.approx(1)
        assert 0 < rows[name]["floor"] < rows[name]["seconds"]
    assert rows["published esd"]["calls"] > 50 and rows["esd"]["file"] > 1000
    capsys.readouterr()
    assert main(["compare", str(out), str(out)]) == 0
    assert capsys.readouterr().out.count("1.00×") == 2 * 3


def test_solve_follows_the_formula(tmp_path: Path) -> None:
    out = tmp_path / "solve.json"
    tiny = ["--tiny", "--dtype", "float32", "--size", "64"]
    assert main(["solve", *tiny, "--concepts", "1", "4", "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    assert [solved["concepts"] for solved in result["solved"]] == [1, 4]
    for solved in result["solved"]:
        assert solved["given_up"] < 0.02, "cut at the settings' own tolerance of 1 %"
        assert solved["exact_error"] < 1e-5 and solved["exact_rank"] > solved["rank"]
        assert solved["encoding"] > 0 and solved["solving"] > 0
    assert [row["files"] for row in result["stacked"]] == [1, 2, 4, 8]
    assert all(row[way] > 0 for row in result["stacked"] for way in ("none", "stacked", "merged", "baked"))
    told = solved_table(result)
    assert "rank at tolerance 0" in told and told.count("\n| 8 |") == 1 and str(result["side"]) in told


def test_the_error_is_of_every_layer() -> None:
    """A change that is wrong in one layer in the middle alone is wrong."""
    model, concept, settings = _small(), solving.concept_of(1), ClosedFormSettings(tolerance=0.0)
    deltas = closed_form(model, concept, settings, Silent())
    names = list(deltas)
    assert max(solving.errors(model, concept, settings, [deltas])[0]) < 1e-5
    with torch.no_grad():
        deltas[names[len(names) // 2]].up.mul_(1.5)
    assert min(solving.errors(model, concept, settings, [deltas])[0]) > 1e-3


def test_files_do_the_same_stacked_merged_and_baked() -> None:
    model = _small()
    weights, before = weights_hash(model), prediction(model)
    parts, found = using.files(model, 3), []
    for context in using.contexts(model, parts).values():
        with context():
            found.append(prediction(model))
        assert weights_hash(model) == weights and torch.equal(prediction(model), before)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found[0], before, rtol=1e-3, atol=1e-4)


def test_the_documents_figures_are_those_of_the_results() -> None:
    text = DOCS.read_text(encoding="utf-8")
    assert filled(text, RESULTS) == text, "run: python -m benchmarks docs"


def test_rows_without_a_peak_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On a CPU the peak is counted with the floor, which ``--no-floor`` leaves out."""
    row = {"name": "sage", "seconds": 2.0, "peak": None}
    for name, faster in (("before", {}), ("after", {"seconds": 1.0, "peak": 5})):
        result = [{"family": "sd15", "side": 64, "rows": [{**row, **faster}]}]
        (tmp_path / f"{name}.json").write_text(json.dumps(result))
    assert main(["compare", str(tmp_path / "before.json"), str(tmp_path / "after.json")]) == 0
    assert "| 2.00× |  |" in capsys.readouterr().out


def test_a_solver_is_not_given_the_peak_of_the_row_before(monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = [10**9]  # of what ran before
    monkeypatch.setattr(rows, "_reset_peak", lambda device: peaks.clear())
    monkeypatch.setattr(rows, "_peak", lambda device: max(peaks, default=7))
    model = build("sd15", 64, "cpu", torch.float32, seed=0, tiny=True)
    setup = rows.Setup("sd15", 64, "cpu", torch.float32, True, 1, {})
    assert rows.method_row(model, METHODS["closed_form"], setup).peak == 7


def test_a_whole_erasure_is_timed_by_stage_and_stopped_when_its_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    model, clock = build("sd15", 32, tiny=True), iter(range(100))
    monkeypatch.setattr(benchmarks.whole, "wall", lambda device: float(next(clock)))
    watch = Stages("cpu", most=5.0)  # made at 0
    for stage, step in (("trajectories", 0), ("trajectories", 1), ("training", 1), ("training", 2)):
        watch.update(Report(stage, step, 4))
    assert not watch.cancelled()
    watch.close()
    assert watch.cancelled()
    assert watch.seconds == {"trajectories": 3.0, "training": 2.0} and watch.done == 2
    half = Whole("esd", "balanced", dict(watch.seconds), 4, 2, None)
    assert all_seconds(asdict(half)) == 7.0, "the missing steps are reckoned, the pool is not"
    stopped = whole(model, "esd", "fast", "cpu", most=0.0)
    assert stopped.steps == EsdSettings().steps // 2 and stopped.done == 0 and all_seconds(asdict(stopped)) is None
    made = {"family": "sd15", "side": 512, "dtype": "float32", "seed": 0, "tiny": False, "machine": "M", "command": "C"}
    assert "| esd | balanced | 7 s (extrapolated) | 3 s | 2 s | 2 of 4 |" in whole_table(
        {**made, "runs": [asdict(half)]}
    )


def test_other_ways_to_run_the_network_leave_it_as_it_was() -> None:
    model = build("sd15", 32, tiny=True)
    before, weights = prediction(model), weights_hash(model)
    found = list(ways(model, 1, "cpu", WAYS[:2]))
    assert [way.name for way in found] == ["as it is", "channels_last"]
    assert all(0 < way.predicting < (way.training or 0) for way in found)
    assert torch.equal(prediction(model), before) and weights_hash(model) == weights
