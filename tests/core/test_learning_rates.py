"""One setting must move a narrow and a wide layer equally far: rates are relative to the layer's width."""

import pytest
import torch
from torch import Tensor, nn

from erasure_core.delta import DeltaSet, new_deltas
from erasure_core.rates import learning_rates

NARROW_IN, NARROW_OUT, TILE, REPEAT = 64, 64, 12, 5


def one_step(layer: nn.Linear, x: Tensor, goal: Tensor, repeat: int, rank: int, name: str) -> Tensor:
    """Change of the output after one Adam step; copies of an output are averaged, as a wide network reads them."""
    deltas = new_deltas({name: layer}, rank, seed=0)
    rates = [{"params": [p], "lr": lr} for p, lr in learning_rates(name, layer, deltas[name], 1e-3)]
    optimizer = torch.optim.Adam(rates)

    def read(y: Tensor) -> Tensor:
        return y.unflatten(-1, (-1, repeat)).mean(-1)

    before = read(layer(x))
    with deltas.attached({name: layer}):
        (read(layer(x)) - goal).pow(2).mean().backward()
        optimizer.step()
        return (read(layer(x)) - before).detach()


@pytest.mark.parametrize("rank", [0, 32])
@pytest.mark.parametrize("name", ["unet.attn2.to_k", "unet.ff.proj"])
def test_a_widened_layer_moves_as_far_as_the_narrow_one(rank: int, name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    narrow = nn.Linear(NARROW_IN, NARROW_OUT, bias=False).requires_grad_(False)
    narrow.weight.normal_(0, NARROW_IN**-0.5, generator=generator)
    wide = nn.Linear(NARROW_IN * TILE, NARROW_OUT * REPEAT, bias=False).requires_grad_(False)
    wide.weight.copy_(narrow.weight.repeat(1, TILE).repeat_interleave(REPEAT, 0) / TILE)
    x = torch.randn(256, NARROW_IN, generator=generator)
    goal = torch.randn(256, NARROW_OUT, generator=generator)
    torch.testing.assert_close(wide(x.repeat(1, TILE)).unflatten(-1, (-1, REPEAT)).mean(-1), narrow(x))
    moved = one_step(narrow, x, goal, 1, rank, name)
    moved_wide = one_step(wide, x.repeat(1, TILE), goal, REPEAT, rank, name)
    assert moved.norm() > 0
    assert moved_wide.norm() / moved.norm() == pytest.approx(1.0, abs=0.1)


def test_deltas_of_both_widths_are_created_alike() -> None:
    """A fresh low-rank delta projects inputs of unit size to unit size at any width."""
    for width in (64, 768):
        deltas: DeltaSet = new_deltas({"layer": nn.Linear(width, 8)}, 32, 0)
        projected = torch.randn(512, width) @ deltas["layer"].down.T  # type: ignore[union-attr, operator]
        assert projected.std().item() == pytest.approx(1.0, abs=0.1)
