"""Noise schedules: every prediction type must tell the same story about clean latents and noise."""

import pytest
import torch

from erasure_core import NoiseSchedule
from erasure_core.errors import InvalidSettings


def schedules() -> list[NoiseSchedule]:
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alphas = torch.cumprod(1 - betas, 0)
    return [
        NoiseSchedule.from_alphas_cumprod(alphas, "epsilon"),
        NoiseSchedule.from_alphas_cumprod(alphas, "v_prediction"),
    ]


def exact_prediction(schedule: NoiseSchedule, x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    a, s = schedule.scales(t)
    return {"epsilon": noise, "v_prediction": a * noise - s * x0}[schedule.prediction]


@pytest.mark.parametrize("schedule", schedules(), ids=lambda s: s.prediction)
def test_split_inverts_add_noise(schedule: NoiseSchedule) -> None:
    x0, noise, t = torch.randn(4, 4, 8, 8), torch.randn(4, 4, 8, 8), torch.tensor([0, 250, 600, 900])
    z = schedule.add_noise(x0, noise, t)
    clean, found = schedule.split(z, t, exact_prediction(schedule, x0, noise, t))
    torch.testing.assert_close(clean, x0, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(found, noise, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("schedule", schedules(), ids=lambda s: s.prediction)
def test_exact_predictions_lead_back_to_the_clean_latents(schedule: NoiseSchedule) -> None:
    x0, noise = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    timesteps = schedule.timesteps(7)
    z = schedule.add_noise(x0, noise, torch.full((2,), timesteps[0]))
    for now, following in zip(timesteps, [*timesteps[1:], -1], strict=True):
        t = torch.full((2,), now)
        z = schedule.step(z, t, torch.full((2,), following), exact_prediction(schedule, x0, noise, t))
    torch.testing.assert_close(z, x0, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("following", [-1, 300])
@pytest.mark.parametrize("schedule", schedules(), ids=lambda s: s.prediction)
def test_a_step_back_is_undone_by_a_step(schedule: NoiseSchedule, following: int) -> None:
    z, prediction = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    t, noisier = torch.tensor([following] * 2), torch.tensor([700] * 2)
    back = schedule.step_back(z, t, noisier, prediction)
    torch.testing.assert_close(schedule.step(back, noisier, t, prediction), z, atol=1e-4, rtol=1e-4)
    assert (back - z).norm() > 0.1 * z.norm()


@pytest.mark.parametrize("schedule", schedules(), ids=lambda s: s.prediction)
def test_a_prediction_is_compared_as_noise(schedule: NoiseSchedule) -> None:
    x0, noise, t = torch.randn(4, 4, 8, 8), torch.randn(4, 4, 8, 8), torch.tensor([0, 250, 600, 900])
    z, exact = schedule.add_noise(x0, noise, t), exact_prediction(schedule, x0, noise, t)
    torch.testing.assert_close(schedule.noise_of(z, t, exact), noise, atol=1e-5, rtol=1e-5)


def test_a_schedule_that_ends_in_pure_noise_agrees_with_diffusers() -> None:
    from diffusers import DDIMScheduler

    theirs = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
    )
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alphas = torch.cumprod(1 - betas, 0)
    ours = NoiseSchedule.from_alphas_cumprod(alphas, "v_prediction", zero_terminal=True)
    torch.testing.assert_close(ours.signal, theirs.alphas_cumprod.sqrt(), atol=1e-5, rtol=1e-4)
    assert ours.signal[-1] == 0 and ours.noise[-1] == 1
    theirs.set_timesteps(10)
    assert ours.timesteps(10) == theirs.timesteps.tolist()
    x0, noise = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    z = noise
    for now, following in zip(ours.timesteps(10), [*ours.timesteps(10)[1:], -1], strict=True):
        t = torch.full((2,), now)
        z = ours.step(z, t, torch.full((2,), following), exact_prediction(ours, x0, noise, t))
    torch.testing.assert_close(z, x0, atol=2e-3, rtol=1e-3)
    with pytest.raises(ValueError, match="pure noise"):
        NoiseSchedule.from_alphas_cumprod(alphas, "epsilon", zero_terminal=True)


def test_epsilon_step_agrees_with_diffusers() -> None:
    from diffusers import DDIMScheduler

    theirs = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        timestep_spacing="trailing",
        set_alpha_to_one=True,
    )
    theirs.set_timesteps(10)
    ours = schedules()[0]
    assert theirs.timesteps.tolist() == ours.timesteps(10)
    z, prediction = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8)
    for now, following in zip(ours.timesteps(10), [*ours.timesteps(10)[1:], -1], strict=True):
        expected = theirs.step(prediction, now, z).prev_sample
        z = ours.step(z, torch.tensor([now]), torch.tensor([following]), prediction)
        torch.testing.assert_close(z, expected, atol=1e-4, rtol=1e-4)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="prediction type 'x0' is unknown"):
        NoiseSchedule(torch.ones(3), torch.ones(3), "x0")
    for steps in (0, 1001):
        with pytest.raises(InvalidSettings, match="has 1000 timesteps; choose steps between 1 and 1000"):
            schedules()[0].timesteps(steps)
