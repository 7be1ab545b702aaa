"""What is put on a parameter: worked out when it is needed, as small as the erasures until then."""

from __future__ import annotations

import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from erasure_core.delta import DeltaSet, DenseDelta, LowRankDelta
from erasure_core.hosts import webui_hosts
from erasure_core.hosts.webui import WebuiModel
from erasure_core.hosts.webui_changes import Change, Effect, Expanding, changes_of
from erasure_core.hosts.webui_patching import patcher_for
from erasure_core.hosts.webui_slots import Applied, Slot


def low_rank(rows: int, inputs: int, rank: int = 2) -> LowRankDelta:
    return LowRankDelta(torch.randn(rank, inputs), torch.randn(rows, rank))


@pytest.fixture
def joined() -> Change:
    """Of a weight that query, key and value share: two erasures, of all of it and of the key's rows."""
    layer = nn.Linear(6, 300)
    slots = {
        "text_encoder.whole": Slot(layer, "weight", layer),
        "text_encoder.key": Slot(layer, "weight", layer, (100, 200)),
    }
    wanted = [
        Applied("all", "a", DeltaSet({"text_encoder.whole": DenseDelta(torch.randn(300, 6))}), 1.0, 0.5),
        Applied("key", "b", DeltaSet({"text_encoder.key": low_rank(100, 6)}), 1.0, 2.0),
    ]
    (change,) = changes_of(wanted, slots, text=True)
    assert changes_of(wanted, slots, text=False) == []
    return change


def total(change: Change) -> Tensor:
    whole = torch.zeros(change.shape)
    for part in change.parts:
        whole[slice(*part.rows)] += part.strength * part.delta.change().detach()
    return whole


def test_some_rows_are_those_of_the_whole(joined: Change) -> None:
    whole = total(joined)
    torch.testing.assert_close(joined.dense(), whole)
    rows = torch.tensor([0, 99, 100, 150, 199, 200, 299])
    torch.testing.assert_close(joined.rows(rows), whole[rows])


def test_a_host_computes_with_it_as_with_a_tensor(joined: Change) -> None:
    patch, whole = Expanding(joined), total(joined)
    assert isinstance(patch, Tensor) and (patch.shape, patch.dtype) == (whole.shape, torch.float32)
    with torch.inference_mode():
        weight = torch.randn(300, 6)
        for moved in (patch, patch.to("cpu"), patch.to("cpu", non_blocking=True).to(torch.float32)):
            torch.testing.assert_close(weight + 0.5 * moved, weight + 0.5 * whole)
        copied = torch.empty_like(patch, device="cpu", dtype=torch.float32)
        copied.copy_(patch)
        torch.testing.assert_close(copied, whole)
        assert patch.to(torch.float16).dtype == torch.float16 and patch.ndim == 2


@pytest.mark.parametrize("held", [0.0, 0.3, 1.0])
def test_the_share_is_what_the_weights_hold(joined: Change, held: float) -> None:
    effect, before = Effect(), torch.randn(300, 6)
    effect.add(before + held * total(joined), before, joined)
    assert effect.share == pytest.approx(held, abs=1e-5)


def test_a_change_of_few_rows_is_found_among_them() -> None:
    layer, rows = nn.Linear(4, 1280), torch.zeros(1280, 4)
    rows[1] = 1.0
    (change,) = changes_of(
        [Applied("one", "a", DeltaSet({"unet.a": DenseDelta(rows)}))],
        {"unet.a": Slot(layer, "weight", layer)},
        text=False,
    )
    effect = Effect()
    effect.add(layer.weight, layer.weight, change)
    assert effect.share == 0.0


def test_no_dense_change_is_kept(forge: SimpleNamespace) -> None:
    """Of SDXL's layers all together they would take 10 GB."""
    patcher: Any = patcher_for(WebuiModel(forge.model))
    deltas = {
        n: low_rank(*layer.weight.shape) for n, layer in patcher.view.layers().items() if n.endswith("attn2.to_k")
    }
    patcher.apply([Applied("one", "digest", DeltaSet(deltas))])
    kept = [
        change for patches in forge.model.forge_objects.unet.lora_patches.values() for _, (change,) in patches.values()
    ]
    assert len(kept) == len(deltas) and all(isinstance(change, Expanding) for change in kept)


@pytest.mark.parametrize("kind", ["forge", "classic"])
def test_patched_weights_are_gone_once_the_host_has_taken_them_off(kind: str, request: pytest.FixtureRequest) -> None:
    """Of SDXL's text encoders they would take a gigabyte of the card."""
    loaded = request.getfixturevalue(kind).model
    patcher: Any = patcher_for(WebuiModel(loaded))
    name, layer = next((n, layer) for n, layer in patcher.view.layers().items() if n.endswith("attn2.to_k"))
    wanted = [Applied("one", "digest", DeltaSet({name: low_rank(*layer.weight.shape)}))]
    patcher.apply(wanted)
    loaded.prepare()
    assert patcher.in_effect(wanted) and patcher.in_effect(wanted)
    patched = weakref.ref(layer._parameters["weight"])
    patcher.apply([])
    loaded.prepare()
    assert patched() is None
    assert patcher.in_effect([])


def test_modules_are_named_once_however_many_are_asked_for(
    forge: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    named: list[nn.Module] = []
    model = WebuiModel(forge.model)
    plain = nn.Module.named_modules

    def counted(module: nn.Module, *given: Any, **more: Any) -> Any:
        named.append(module)
        return plain(module, *given, **more)

    asked = list(model.layers())
    assert len(asked) > 20 and isinstance(model.host, webui_hosts.ForgeHost)
    root = forge.model.forge_objects_original.unet.model
    monkeypatch.setattr(root, "named_modules", lambda *g, **m: counted(root, *g, **m))
    for name in asked:
        model.base_weight(name)
    assert len(named) == 1
