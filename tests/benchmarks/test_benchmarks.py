"""The speed benchmark in small: what it counts, what it measures, and that the documents hold its figures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.__main__ import DOCS, RESULTS, main
from benchmarks.architectures import build, modules
from benchmarks.documents import filled
from benchmarks.every_method import prediction
from benchmarks.floor import Work, count
from benchmarks.gpu_check import weights_hash
from benchmarks.ledger import Ledger
from benchmarks.machine import Rates
from benchmarks.meter import Meter
from benchmarks.published import LOOPS, running
from benchmarks.rows import CONCEPT, pooled_latents
from erasure_core import effort
from erasure_core.methods.esd import EsdSettings


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


def test_the_pools_cost_is_that_of_their_calls() -> None:
    settings = EsdSettings(steps=100, refresh=40, trajectories=6, trajectory_steps=10, contexts=0)
    assert pooled_latents(settings, CONCEPT) == 3 * 10 * (6 + 6) * 2 / 100
    # In three kept prompts the word is said in six ways, one of which is a template; that adds a role to the concept's
    # pool, and two prompts without it to the kept one's.
    assert pooled_latents(replace(settings, contexts=16), CONCEPT) == 3 * 10 * (10 * 3 + 6 * 2) / 100


@pytest.mark.parametrize("loop", LOOPS)
def test_published_loops_train_and_leave_the_model_alone(loop: str) -> None:
    model = build("sd15", 64, tiny=True)
    weights, before = weights_hash(model), prediction(model)
    with running(loop, model, Meter("cpu")) as stepping:
        parameters = [p for group in stepping.optimizer.param_groups for p in group["params"]]
        start = [p.detach().clone() for p in parameters]
        stepping.step(2)
        assert any(not torch.equal(p, old) for p, old in zip(parameters, start, strict=True))
    assert weights_hash(model) == weights and torch.equal(prediction(model), before)


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
    assert main(["solve", "--tiny", "--dtype", "float32", "--concepts", "1", "4", "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    assert [solved["concepts"] for solved in result["solved"]] == [1, 4]
    assert all(solved["error"] < 1e-3 for solved in result["solved"]), "cut at the settings' own tolerance"


def test_the_documents_figures_are_those_of_the_results() -> None:
    text = DOCS.read_text(encoding="utf-8")
    assert filled(text, RESULTS) == text, "run: python -m benchmarks docs"
