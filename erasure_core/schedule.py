"""Noise schedules: eps and v models behind the same functions.

Every supported model corrupts data as ``z_t = a(t) x0 + s(t) n``. Only the meaning of its prediction differs:
``epsilon`` predicts n, ``v_prediction`` predicts a n - s x0 (Salimans & Ho 2022).

Differences of v are 1/a times as long as those of eps, 15 times at SD's noisiest timestep. Losses are taken of
the prediction itself and so weigh noisy states more, as such models were trained. But what is told of a model must not
depend on how it is written: what is measured over several timesteps is measured of the noise (``noise_of``).
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import InvalidSettings

PREDICTIONS = ("epsilon", "v_prediction")


@dataclass(frozen=True)
class NoiseSchedule:
    """Signal and noise scales for integer timesteps 0..T-1, from clean to noisy.

    Args:
        signal: a(t), float32 [T].
        noise: s(t), float32 [T].
        prediction: one of ``PREDICTIONS``.

    Raises:
        ValueError: unknown prediction type or scales of different shape.
    """

    signal: Tensor
    noise: Tensor
    prediction: str = "epsilon"

    def __post_init__(self) -> None:
        if self.prediction not in PREDICTIONS:
            raise ValueError(f"prediction type {self.prediction!r} is unknown; known are {', '.join(PREDICTIONS)}")
        if self.signal.shape != self.noise.shape or self.signal.dim() != 1:
            raise ValueError("signal and noise scales must be vectors of the same length")

    @classmethod
    def from_alphas_cumprod(
        cls, alphas_cumprod: Tensor, prediction: str = "epsilon", zero_terminal: bool = False
    ) -> NoiseSchedule:
        """Variance-preserving schedule (Stable Diffusion): a^2 = alphas_cumprod, a^2 + s^2 = 1.

        With ``zero_terminal`` a is moved and stretched so that it ends at 0, in pure noise, and begins where it did
        (zero terminal SNR, Lin et al. 2024, algorithm 1).

        Raises:
            ValueError: it ends in pure noise, in which an epsilon model finds no picture to begin with.
        """
        alphas = alphas_cumprod.detach().cpu().double()  # in this order: Apple's devices have no such numbers
        if zero_terminal:
            if prediction == "epsilon":
                raise ValueError("a model that predicts epsilon cannot start from pure noise (zero terminal SNR)")
            signal = alphas.sqrt()
            alphas = ((signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])).square()
        return cls(alphas.sqrt().float(), (1 - alphas).sqrt().float(), prediction)

    def __len__(self) -> int:
        return len(self.signal)

    def digest(self) -> str:
        """A hash of all that it says, 16 hexadecimal digits."""
        scales = torch.stack([self.signal, self.noise]).to("cpu", torch.float32).contiguous()
        return hashlib.sha256(self.prediction.encode() + scales.numpy().tobytes()).hexdigest()[:16]

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """a(t) and s(t) shaped [B, 1, 1, 1] for timesteps [B], on the device of ``t``."""
        index = t.long().cpu()
        a, s = self.signal[index], self.noise[index]
        return a.view(-1, 1, 1, 1).to(t.device), s.view(-1, 1, 1, 1).to(t.device)

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """z_t from clean latents and unit noise, both [B, C, H, W]."""
        a, s = self.scales(t)
        return a * x0 + s * noise

    def split(self, z: Tensor, t: Tensor, prediction: Tensor) -> tuple[Tensor, Tensor]:
        """The clean latents and the noise that a prediction stands for, both [B, C, H, W]."""
        a, s = self.scales(t)
        if self.prediction == "epsilon":
            return (z - s * prediction) / a.clamp_min(1e-6), prediction
        return a * z - s * prediction, s * z + a * prediction

    def noise_of(self, z: Tensor, t: Tensor, prediction: Tensor) -> Tensor:
        """The noise that a prediction stands for, [B, C, H, W]: of an epsilon model the prediction as it is."""
        return prediction if self.prediction == "epsilon" else self.split(z, t, prediction)[1]

    def step(self, z: Tensor, t: Tensor, t_next: Tensor, prediction: Tensor) -> Tensor:
        """One deterministic step (DDIM, Song et al. 2021, eq. 12 with sigma 0) from t to t_next; -1 is clean."""
        x0, noise = self.split(z, t, prediction)
        a, s = self.scales(t_next.clamp_min(0))
        clean = (t_next < 0).view(-1, 1, 1, 1)
        return torch.where(clean, x0, a * x0 + s * noise)

    def step_back(self, z: Tensor, t: Tensor, t_noisier: Tensor, prediction: Tensor) -> Tensor:
        """The inverse of ``step`` from ``t_noisier`` to t for the same prediction: from z at t, of which -1 is clean,
        the latents at ``t_noisier``."""
        a_next, s_next = self.scales(t_noisier)
        a, s = self.scales(t.clamp_min(0))
        clean = (t < 0).view(-1, 1, 1, 1)
        a, s = a.masked_fill(clean, 1.0), s.masked_fill(clean, 0.0)
        if self.prediction == "epsilon":
            return a_next * (z - s * prediction) / a + s_next * prediction
        # x0 = a' z' - s' v and n = s' z' + a' v at the noisier z', and z = a x0 + s n: solved for z'.
        return (z - (s * a_next - a * s_next) * prediction) / (a * a_next + s * s_next)

    def timesteps(self, steps: int) -> list[int]:
        """``steps`` timesteps from the noisiest down, evenly spaced ("trailing"): sampling starts at pure noise.

        Raises:
            InvalidSettings: fewer than one step, or more than the schedule has timesteps.
        """
        if not 1 <= steps <= len(self):
            raise InvalidSettings(
                f"{steps} sampling steps were asked for, but this model's noise schedule has {len(self)} timesteps; "
                f"choose steps between 1 and {len(self)}."
            )
        return [math.ceil(len(self) * (steps - i) / steps) - 1 for i in range(steps)]
