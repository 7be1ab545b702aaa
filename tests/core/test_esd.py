"""ESD's loss against its formula, and what its training does to a model."""

from dataclasses import fields

import pytest
import torch
from torch import Tensor

from erasure_core import Concept, DeltaSet, erase
from erasure_core.delta import new_deltas
from erasure_core.hosts.diffusers import DiffusersModel
from erasure_core.layers import select
from erasure_core.methods import METHODS
from erasure_core.methods.esd import EsdSettings
from erasure_core.progress import Silent
from erasure_core.trainer import Step, Trainer, train

MANY = {"rank": 4, "trajectories": 40, "trajectory_steps": 4, "batch": 3}
SMALL = {"replace": False, "rank": 4, "trajectories": 10, "trajectory_steps": 4, "batch": 3}


def reference_loss(model: DiffusersModel, settings: EsdSettings, step: Step, deltas: DeltaSet) -> Tensor:
    """ESD for one latent at a time, straight from the formula, with fresh teacher calls."""

    def predict(z: Tensor, t: Tensor, prompt: str) -> Tensor:
        return model.predict(z[None], t[None], model.encode([prompt]))[0]

    erase, keep = [], []
    for z, t, prompt in zip(step.concept.latents, step.concept.t, step.concept.prompts, strict=True):
        with torch.no_grad(), deltas.off():
            saying = step.trainer.sayings[prompt]
            base, concept = predict(z, t, saying.without), predict(z, t, prompt)
            told = step.trainer.concept.alternative is not None
            target = base - (settings.negative_beside if told else settings.negative) * (concept - base)
            if told:
                target = target + settings.towards * (predict(z, t, saying.instead) - base)
        erase.append((predict(z, t, prompt) - target).pow(2).mean())
    for z, t, prompt in zip(step.kept.latents, step.kept.t, step.kept.prompts, strict=True):
        with torch.no_grad(), deltas.off():
            same = predict(z, t, prompt)
        keep.append((predict(z, t, prompt) - same).pow(2).mean())
    return torch.stack(erase).mean() + settings.keep_weight * torch.stack(keep).mean()


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize("alternative", [None, "box"])
def test_loss_and_gradients_follow_the_formula(
    pico_models: dict[str, DiffusersModel], family: str, alternative: str | None
) -> None:
    model = pico_models[family]
    settings = EsdSettings(
        layers="cross-attention+text-encoder", negative=1.5, negative_beside=0.4, keep_weight=0.7, **MANY
    )
    concept = Concept(("ball", "orb"), alternative, ("a red box",))
    trainer = Trainer(model, concept, METHODS["esd"], settings, Silent())
    with torch.no_grad():
        for parameter in trainer.deltas.parameters():
            parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
    with model.trainable(), trainer.deltas.attached(trainer.layers):
        trainer.begin()
        trainer.refresh_pools()
        pool = trainer.pools["concept"]
        without = [trainer.sayings[pool.texts[text]].without for text in pool.prompts]
        chosen = [without.index(rest) for rest in ("", "a red", "a red box")]
        erased = pool.at(torch.tensor(chosen), torch.tensor([0, 2, 3]))
        step = Step(erased, trainer.pools["kept"].draw(3, torch.Generator().manual_seed(1)), trainer)
        loss = torch.stack(list(METHODS["esd"].loss(settings, step).values())).sum()  # type: ignore[misc]
        found = torch.autograd.grad(loss, trainer.deltas.parameters(), allow_unused=True)
        reference = reference_loss(model, settings, step, trainer.deltas)
        expected = torch.autograd.grad(reference, trainer.deltas.parameters(), allow_unused=True)
    torch.testing.assert_close(loss, reference, atol=1e-5, rtol=1e-4)
    # SDXL reads its first text encoder before the last layer, so that layer has no gradient.
    assert [g is None for g in found] == [g is None for g in expected]
    for ours, theirs in zip(found, expected, strict=True):
        if ours is not None and theirs is not None:
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-3)


def test_training_lowers_the_loss_and_the_guidance(pico: DiffusersModel) -> None:
    settings = EsdSettings(
        layers="full", negative=1.0, steps=150, learning_rate=3e-4, driver="original", cool_down=0.0, **SMALL
    )
    trainer = Trainer(pico, Concept(("ball",)), METHODS["esd"], settings, Silent())
    with pico.trainable(), trainer.deltas.attached(trainer.layers):
        trainer.run()
    history = trainer.history
    erase = [terms["erase"] for terms in history.losses]
    assert sum(erase[-10:]) < 0.5 * sum(erase[:10])
    with trainer.deltas.attached(trainer.layers):
        residual = trainer.residual_guidance(trainer.pools["concept"].draw(16, torch.Generator().manual_seed(0)))
    assert residual < 0.7, "an untouched model has 1, eta = 1 aims at -1"


def test_early_stop_on_residual_guidance(pico: DiffusersModel) -> None:
    settings = EsdSettings(layers="full", steps=2000, learning_rate=5e-3, stop_below=0.5, **SMALL)
    _, history = train(pico, Concept(("ball",)), METHODS["esd"], settings, Silent())
    assert len(history.losses) < 2000
    step, residual = history.residual_guidance[-1]
    assert step == len(history.losses) and residual < 0.5
    assert history.residual_guidance[0] == pytest.approx((0, 1.0), abs=1e-4)


def test_same_seed_same_bits_other_seed_others(pico: DiffusersModel) -> None:
    def trained(seed: int) -> list[Tensor]:
        settings = EsdSettings(steps=5, seed=seed, **SMALL)
        deltas, _ = train(pico, Concept(("ball",)), METHODS["esd"], settings, Silent())
        return [p.detach().clone() for p in deltas.parameters()]

    first, again, other = trained(0), trained(0), trained(1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_accumulated_batches_equal_their_mean(pico: DiffusersModel) -> None:
    """Gradients of two accumulated batches are the mean of the two, so the first Adam step sees their direction."""
    settings = EsdSettings(steps=1, accumulate=2, **SMALL)
    trainer = Trainer(pico, Concept(("ball",)), METHODS["esd"], settings, Silent())
    seen: list[list[Tensor]] = []
    original = trainer.optimizer.step

    def spy(*args: object, **kwargs: object) -> None:
        seen.append([p.grad.clone() for p in trainer.deltas.parameters() if p.grad is not None])
        original(*args, **kwargs)  # type: ignore[arg-type]

    trainer.optimizer.step = spy  # type: ignore[method-assign, assignment]
    with pico.trainable(), trainer.deltas.attached(trainer.layers):
        trainer.run()
    fresh = new_deltas(select(pico.layers(), settings.layers), settings.rank, settings.seed)
    trainer.deltas.deltas = fresh.deltas
    with pico.trainable(), fresh.attached(pico.layers()):
        parts = []
        for part in range(2):
            generator = trainer.chance(1_000_000_007 + part)
            concept, kept = (trainer.pools[name].draw(settings.batch, generator) for name in ("concept", "kept"))
            terms = METHODS["esd"].loss(settings, Step(concept, kept, trainer))  # type: ignore[misc]
            total = torch.stack(list(terms.values())).sum()
            parts.append(torch.autograd.grad(total, fresh.parameters(), allow_unused=True))
    for found, first, second in zip(seen[0], *parts, strict=True):
        torch.testing.assert_close(found, (first + second) / 2, atol=1e-7, rtol=1e-3)


def test_checkpointing_recomputes_and_gives_the_same_training(pico: DiffusersModel) -> None:
    entered: list[int] = []

    def trained(checkpointing: bool) -> list[Tensor]:
        settings = EsdSettings(steps=3, checkpointing=checkpointing, **SMALL)
        entered.append(0)
        deltas, _ = train(pico, Concept(("ball",)), METHODS["esd"], settings, Silent())
        return [p.detach() for p in deltas.parameters()]

    def count(module: torch.nn.Module, inputs: object) -> None:
        entered[-1] += 1

    resnet = pico.unet.get_submodule("up_blocks.1.resnets.1.conv1")
    handle = resnet.register_forward_pre_hook(count)
    plain, recomputed = trained(False), trained(True)
    handle.remove()
    assert entered[1] == entered[0] + 3, "each of three steps must run the layer once more"
    for first, second in zip(plain, recomputed, strict=True):
        torch.testing.assert_close(first, second, atol=1e-6, rtol=1e-5)


def test_erasing_works_where_the_host_is_in_inference_mode(pico: DiffusersModel) -> None:
    from erasure_core import erase

    settings = EsdSettings(steps=2, **SMALL)
    expected, _ = erase(pico, Concept(("ball",)), "esd", settings)
    with torch.inference_mode():
        found, _ = erase(pico, Concept(("ball",)), "esd", settings)
    for a, b in zip(expected.deltas.parameters(), found.deltas.parameters(), strict=True):
        assert torch.equal(a, b) and not b.is_inference()


def test_float16_overflow_is_stepped_over(pico: DiffusersModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a float16 card: scaled gradients overflow at first, the scale is halved until they do not."""
    settings = EsdSettings(steps=4, refresh=2, **SMALL)
    expected, _ = train(pico, Concept(("ball",)), METHODS["esd"], settings, Silent())
    drawn: list[int] = []

    class Overflowing(Trainer):
        def _backward(self) -> dict[str, Tensor]:
            losses = super()._backward()
            if self.loss_scale > 512:
                next(self.deltas.parameters().__iter__()).grad.fill_(float("inf"))  # type: ignore[union-attr]
            return losses

        def refresh_pools(self) -> None:
            before = self.pools
            super().refresh_pools()
            drawn.append(self.pools is not before)

    with pico.trainable():
        trainer = Overflowing(pico, Concept(("ball",)), METHODS["esd"], settings, Silent())
        trainer.loss_scale = 4096.0
        with trainer.deltas.attached(trainer.layers):
            trainer.run()
    assert trainer.loss_scale == 512 and sum(drawn) == 2
    for a, b in zip(expected.parameters(), trainer.deltas.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("method", ["esd", "closed_form", "auto"])
def test_a_kept_prompt_as_long_as_the_model_reads_is_no_hindrance(pico: DiffusersModel, method: str) -> None:
    whole = " ".join(["cat"] * 75)
    short = SMALL if method == "closed_form" else {"steps": 1, **SMALL}
    known = {field.name for field in fields(METHODS[method].settings)}
    settings = METHODS[method].settings(**{key: value for key, value in short.items() if key in known})
    erasure, _ = erase(pico, Concept(("big round ball",), None, (whole, "a red box,")), method, settings)
    assert erasure.manifest.keep[:2] == (whole, "a red box,")
