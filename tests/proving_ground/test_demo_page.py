"""The demo's summary says what its figures say, and no more."""

from __future__ import annotations

from erasure_core.manifest import Manifest
from proving_ground.demo_page import page
from proving_ground.evaluation import Evaluation
from proving_ground.figures import Figure

MANIFEST = Manifest(
    words=("ball",),
    alternative=None,
    keep=(),
    method="auto",
    method_status="",
    settings={"seed": 0},
    steps_done=1,
    family="sd1",
    base_fingerprint="",
    base_sketch=[],
    prediction="epsilon",
    product_version="",
)


def seen(**leaks: float) -> Evaluation:
    every = {"named": 0.0, "unnamed": 0.0, "descriptions": 0.0, "kept": 1.0} | leaks
    shares = {name: Figure(name, share, 6) for name, share in every.items()}
    return Evaluation(shares, Figure("intact", 1.0, 18), Figure("unasked", 0.0, 6), {})


def test_words_that_nobody_named_are_told_of_where_they_were_seen_to_leak() -> None:
    untouched, still = seen(named=1.0, unnamed=1.0, descriptions=1.0), "can still reach the concept"

    def shown(erased: Evaluation) -> str:
        return page(MANIFEST, {"untouched": untouched, "erased": erased}, 1000, 1.0)

    assert still not in shown(seen()), "the rows it would point at are 0 %"
    assert still not in shown(seen(named=0.5))
    assert still in shown(seen(unnamed=1 / 6)) and still in shown(seen(descriptions=1 / 6))
    assert "Whoever has the weights can undo the erasure." in shown(seen())
