"""The model that is explored: with its erasures, and for comparison without them."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from torch import Tensor

from ..batches import Batches
from ..delta import DeltaSet
from ..errors import Cancelled
from ..model import Conditioning, PromptModel, encode_in_pieces
from ..progress import Progress, Report
from .candidate import Candidate

GUIDANCE = 5.0
"""Guidance scale of the pictures that the model makes for itself, where none is asked for; some models want less."""
LARGE = 32 * 32
"""Latent pixels from which gradients recompute activations: a card of 8 GB would not hold them."""


def derived(seed: int, number: int) -> int:
    """The seed of one of many chances that hang on one seed."""
    return (seed * 1_000_003 + number) % 2**63


@dataclass
class Budget:
    """How long to search. Both limits may be given; with calls alone the result depends on the seed only.

    Args:
        seconds: wall-clock time of searching, from ``begin`` on; ``None`` sets no limit.
        calls: predictions of the diffusion network, counted one for each latent, the preparation's too; ``None`` sets
            no limit.
    """

    seconds: float | None = 60.0
    calls: int | None = None
    started: float = field(default_factory=time.monotonic)

    def begin(self) -> None:
        """Start the clock anew: on a slow machine the preparation takes minutes, and would leave nothing to search."""
        self.started = time.monotonic()

    def spent(self, calls: int, more: float = 0.0) -> float:
        """The share of the budget that is used up, 0 to 1 and above, after so many calls; in ``more`` seconds."""
        shares = [0.0]
        if self.seconds is not None:
            shares.append((time.monotonic() - self.started + more) / max(self.seconds, 1e-9))
        if self.calls is not None:
            shares.append(calls / max(self.calls, 1))
        return max(shares)


class Subject:
    """A loaded model with erasures that can be switched off.

    Args:
        model: the loaded model; never changed.
        erasures: what is applied to it, with strengths; none explores the untouched model.
        progress: reports and cancellation.
        budget: how long to search.
        max_batch: most latents in one network call.
        guidance: scale of the pictures that prompts are compared on and that are looked at.
    """

    def __init__(
        self,
        model: PromptModel,
        erasures: Sequence[tuple[DeltaSet, float]],
        progress: Progress,
        budget: Budget,
        max_batch: int = 64,
        guidance: float = GUIDANCE,
    ) -> None:
        self.model, self.progress, self.budget, self.batches = model, progress, budget, Batches(max_batch)
        self.guidance = guidance
        self.sets = [DeltaSet(deltas.deltas, strength) for deltas, strength in erasures]
        self.calls = 0
        self._seconds, self._numbers = 0.0, 0
        self._length = 0
        self._first, self._expected = 0, 0
        self.descended_at_once = max_batch  # prompts that a gradient search looks at together, see ``Aim.descend``
        self.tables: list[Tensor] = []

    @contextmanager
    def opened(self) -> Iterator[Subject]:
        """Everything below works inside only: the erasures hang on the model, its weights are frozen."""
        layers = self.model.layers()
        is_large = self.model.latent_shape[1] * self.model.latent_shape[2] >= LARGE
        with self.model.trainable(is_large), ExitStack() as stack:
            for deltas in self.sets:
                stack.enter_context(deltas.attached(layers))
            self.tables = self.model.token_tables()
            yield self

    @contextmanager
    def preparing(self, calls: int) -> Iterator[None]:
        """Inside, predictions are told as the progress of a preparation that takes about so many of them.

        Raises:
            Cancelled: the user stopped.
        """
        self._first, self._expected = self.calls, calls
        try:
            yield
        except Cancelled as error:
            raise Cancelled("Stopped while preparing, before the search began: nothing was found yet.") from error
        finally:
            self._expected = 0

    def _tell(self, done: int) -> None:
        if self._expected:
            step = min(self._expected, self.calls - self._first + done)
            self.progress.update(Report("preparing", step, self._expected))

    @contextmanager
    def original(self) -> Iterator[None]:
        """Inside, the model is the untouched one."""
        with ExitStack() as stack:
            for deltas in self.sets:
                stack.enter_context(deltas.off())
            yield

    def stopped(self, share: float = 1.0) -> bool:
        """Whether the user stopped, or ``share`` of the budget is used up."""
        return self.progress.cancelled() or self.budget.spent(self.calls) >= share

    def affordable(self, most: int, cost: int, share: float = 1.0, shape: Sequence[int] | None = None) -> int:
        """How many of up to ``most`` things fit into a share of the budget at the pace so far: all, half of them, a
        quarter, …, or 0. Asked before a costly work, which on a slow machine would take longer than the whole budget.

        Args:
            most: things that are wanted.
            cost: predictions that each takes.
            share: of the budget that may then be used up.
            shape: of the latents; ``None`` for the model's own.
        """
        each = self._seconds / max(1, self._numbers) * cost * math.prod(shape or self.model.latent_shape)
        while most and self.budget.spent(self.calls + most * cost, most * each) > share:
            most //= 2
        return most

    def rows(self, candidates: Sequence[Candidate]) -> list[list[int]]:
        """The token ids of candidates, without begin, end and padding."""
        written = [i for i, candidate in enumerate(candidates) if candidate.ids is None]
        texts = [candidates[i].text for i in written]
        read = dict(zip(written, self.model.tokenize(texts) if texts else [], strict=True))
        return [read[i] if i in read else list(c.ids or ()) for i, c in enumerate(candidates)]

    def fits(self, row: Sequence[int]) -> bool:
        """Whether so many tokens are read without a cut."""
        return len(row) + 2 <= self.length

    @property
    def length(self) -> int:
        """Tokens that the text encoder reads, begin and end included."""
        if not self._length:
            self._length = int(self.model.token_rows([[]])[0][0].shape[1])
        return self._length

    def encode(self, candidates: Sequence[Candidate], length: int | None = None) -> Conditioning:
        """Encode candidates as the model reads them now.

        Args:
            candidates: each must fit.
            length: positions to encode; ``None`` all of them. CLIP's text side is causal, so what comes before is the
                same, and prompts of a few tokens cost a tenth.
        """
        rows, ends = self.model.token_rows(self.rows(candidates))
        given = [table[ids] for table, ids in zip(self.tables, rows, strict=True)]
        for i, candidate in enumerate(candidates):
            for encoder, vectors in enumerate(candidate.embeddings or ()):
                given[encoder][i, 1 : 1 + len(vectors)] = vectors.to(given[encoder])
        encoded = self.model.encode_embeddings([embedded[:, :length] for embedded in given], ends)
        return _with_states(encoded, candidates)

    def encode_texts(self, texts: Sequence[str]) -> Conditioning:
        """Encode prompts as a host would."""
        return encode_in_pieces(self.model, texts)

    def predict(
        self, latents: Tensor, t: Tensor, conditioning: Conditioning, prompts: Sequence[int] | None = None
    ) -> Tensor:
        """One prediction for each latent, in as many network calls as it takes; ``prompts`` as of ``Batches.predict``.

        Raises:
            Cancelled: the user stopped.
        """
        started = time.monotonic()
        predicted = self.batches.predict(self.model, latents, t, conditioning, self.progress, self._tell, prompts)
        # A GPU works on behind the host's back: what it took is known when the last number has come.
        predicted.detach().flatten()[-1:].cpu()
        self._seconds += time.monotonic() - started
        self._numbers += latents.numel()
        self.calls += len(latents)
        return predicted


def _with_states(encoded: Conditioning, candidates: Sequence[Candidate]) -> Conditioning:
    """Put in the states of the candidates that bring their own."""
    if all(candidate.states is None for candidate in candidates):
        return encoded
    context = encoded.context.clone()
    for i, candidate in enumerate(candidates):
        if candidate.states is not None:
            context[i] = candidate.states[: context.shape[1]].to(context)
    return Conditioning(context, encoded.ends, encoded.pooled)
