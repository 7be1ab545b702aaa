"""Deltas: what they add, and that switched off or detached nothing of them is left."""

import pytest
import torch
from torch import nn

from erasure_core.delta import DeltaSet, DenseDelta, LowRankDelta, inner_product, new_deltas
from erasure_core.errors import InvalidSettings
from erasure_core.fingerprint import fingerprint
from erasure_core.hosts.diffusers import DiffusersModel
from erasure_core.layers import LAYER_GROUPS, reads_context, select


def random_low_rank(shape: torch.Size, rank: int = 3) -> LowRankDelta:
    down, up = torch.randn(rank, *shape[1:]), torch.randn(shape[0], rank, *[1] * (len(shape) - 2))
    return LowRankDelta(down, up)


@pytest.mark.parametrize("layer", [nn.Linear(6, 5), nn.Conv2d(6, 5, 3, stride=2, padding=1), nn.Conv2d(6, 5, 1)])
@pytest.mark.parametrize("dense", [False, True])
def test_hooked_delta_equals_the_changed_weight(layer: nn.Linear | nn.Conv2d, dense: bool) -> None:
    shape = layer.weight.shape
    delta = DenseDelta(torch.randn(shape)) if dense else random_low_rank(shape)
    x = torch.randn(2, 6) if isinstance(layer, nn.Linear) else torch.randn(2, 6, 8, 8)
    before = layer(x)
    with DeltaSet({"layer": delta}, strength=0.7).attached({"layer": layer}):
        hooked = layer(x)
    with torch.no_grad():
        layer.weight += 0.7 * delta.change()
        changed = layer(x)
        layer.weight -= 0.7 * delta.change()
    torch.testing.assert_close(hooked, changed, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(hooked, before)


def test_off_and_detached_are_bit_identical(pico: DiffusersModel) -> None:
    layers = select(pico.layers(), "full+text-encoder")
    deltas = DeltaSet({name: random_low_rank(layer.weight.shape) for name, layer in layers.items()})
    z, t = torch.randn(2, 4, 8, 8), torch.tensor([10, 700])

    def predict() -> torch.Tensor:
        with torch.no_grad():
            return pico.predict(z, t, pico.encode(["a red ball", "cat"]))

    base, weights = predict(), fingerprint(pico, layers)
    with deltas.attached(pico.layers()):
        assert not torch.allclose(predict(), base, atol=1e-3)
        with deltas.off():
            assert torch.equal(predict(), base)
    assert torch.equal(predict(), base)
    assert fingerprint(pico, layers) == weights


def test_hooks_are_removed_when_attaching_fails(pico: DiffusersModel) -> None:
    layers = pico.layers()
    name = next(iter(layers))
    deltas = DeltaSet({name: random_low_rank(layers[name].weight.shape), "unet.nowhere": DenseDelta(torch.zeros(1, 1))})
    with pytest.raises(KeyError), deltas.attached(layers):
        pass
    assert not layers[name]._forward_hooks


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize("group", LAYER_GROUPS)
def test_layer_groups(pico_models: dict[str, DiffusersModel], family: str, group: str) -> None:
    chosen = select(pico_models[family].layers(), group)
    if group == "text-encoder":
        assert all(name.startswith("text_encoder") for name in chosen)
    else:
        assert all(name.startswith("unet.") for name in chosen)
        cross = [name for name in chosen if ".attn2." in name]
        assert bool(cross) == (group in ("cross-attention-kv", "cross-attention", "full"))
    if group == "cross-attention-kv":
        assert all(reads_context(name) for name in chosen)


def test_full_is_cross_attention_and_the_rest(pico: DiffusersModel) -> None:
    full, cross = select(pico.layers(), "full"), select(pico.layers(), "cross-attention")
    rest = select(pico.layers(), "all-but-cross-attention")
    assert set(full) == set(cross) | set(rest) and not set(cross) & set(rest)


def test_unknown_layers_are_named(pico: DiffusersModel) -> None:
    with pytest.raises(InvalidSettings, match="'cross' are unknown; choose from cross-attention-kv"):
        select(pico.layers(), "cross")


def test_rank_is_cut_to_the_layer_and_starts_at_zero() -> None:
    deltas = new_deltas({"layer": nn.Linear(4, 9)}, rank=100, seed=0)
    delta = deltas["layer"]
    assert isinstance(delta, LowRankDelta) and delta.rank == 4
    assert torch.equal(delta.change(), torch.zeros(9, 4))


def test_a_change_acts_unless_its_factors_never_meet() -> None:
    up, down = torch.zeros(3, 2), torch.zeros(2, 4)
    up[0, 0], down[1, 2] = 1.0, 1.0
    assert not LowRankDelta(down, up).acts() and LowRankDelta(down, up).norm() == 0
    down[0, 3] = -1e-30
    assert LowRankDelta(down, up).acts() and DenseDelta(up).acts() and not DenseDelta.zero(torch.Size((2, 2))).acts()
    assert DeltaSet({"still": DenseDelta.zero(torch.Size((2, 2))), "moved": DenseDelta(up)}).changed() == ["moved"]


def test_layers_that_never_run_are_known() -> None:
    """A host may use a module's weight without calling it (packed attention): its delta would silently do nothing."""
    attention = nn.MultiheadAttention(8, 2)
    deltas = DeltaSet({"out": random_low_rank(attention.out_proj.weight.shape)})
    with deltas.attached({"out": attention.out_proj}):
        attention(torch.randn(3, 1, 8), torch.randn(3, 1, 8), torch.randn(3, 1, 8))
        assert deltas.unused() == ["out"]


@pytest.mark.parametrize("dense", [False, True])
def test_a_change_kept_elsewhere_is_computed_where_the_layer_computes(dense: bool) -> None:
    layer = nn.Linear(6, 5, device="meta")
    delta = DenseDelta(torch.randn(5, 6)) if dense else random_low_rank(torch.Size((5, 6)))
    with DeltaSet({"layer": delta}).attached({"layer": layer}):
        assert layer(torch.randn(2, 6, device="meta")).device.type == "meta"


def test_layers_called_by_keyword_are_changed_too() -> None:
    layer = nn.Linear(4, 4)
    x, delta = torch.randn(2, 4), random_low_rank(torch.Size((4, 4)))
    with DeltaSet({"layer": delta}).attached({"layer": layer}) as deltas:
        torch.testing.assert_close(layer(input=x), layer(x))
        assert not deltas.unused()


def test_inner_products_of_all_kinds_of_changes() -> None:
    generator = torch.Generator().manual_seed(0)
    conv = LowRankDelta(torch.randn(3, 5, 3, 3, generator=generator), torch.randn(4, 3, 1, 1, generator=generator))
    other = LowRankDelta(torch.randn(2, 5, 3, 3, generator=generator), torch.randn(4, 2, 1, 1, generator=generator))
    dense = DenseDelta(torch.randn(4, 5, 3, 3, generator=generator))
    for a in (conv, other, dense):
        for b in (conv, other, dense):
            assert inner_product(a, b) == pytest.approx(float((a.change() * b.change()).sum()), rel=1e-4)
