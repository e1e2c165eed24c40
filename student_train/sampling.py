"""Pick the next token of each row from its logits. Rows are independent: settings, randomness, history.

Order: repetition penalty, temperature (0: the most likely, lowest id on ties), top-k, the smallest set of mass `top_p`,
then `min_p` against the likeliest. Probabilities that are reported are the student's own, before all that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .config import GenerateConfig

CANDIDATES = 256  # sorted first; a row whose choice reaches further is sorted whole


@dataclass(frozen=True)
class Picked:
    """A token, and how likely the student held it; `top` are the most likely (id, log-probability), best first."""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(eq=False)
class Sampler:
    """The settings, randomness and history of one row."""

    config: GenerateConfig
    logprobs: int | None = None  # how many alternatives to report; None: no log-probabilities
    random: torch.Generator = field(init=False)
    seen: Tensor | None = None  # [V] bool, for the repetition penalty

    def __post_init__(self) -> None:
        self.random = torch.Generator().manual_seed(self.config.seed % (1 << 63))

    def note(self, ids: Sequence[int], vocab_rows: int) -> None:
        """Remember ids that the repetition penalty weakens from now on."""
        if self.config.repetition_penalty != 1.0:
            if self.seen is None:
                self.seen = torch.zeros(vocab_rows, dtype=torch.bool)
            self.seen[list(ids)] = True


def pick_rows(logits: Tensor, samplers: Sequence[Sampler]) -> list[Picked]:
    """One token a row; logits float32 [B, V] (dead rows -inf)."""
    greedy = logits.argmax(-1).tolist()
    wanted = [s.logprobs for s in samplers if s.logprobs is not None]
    normaliser = logits.logsumexp(-1).tolist() if wanted else []
    most = min(max(wanted, default=0), logits.shape[-1])
    values, ids = (x.tolist() for x in logits.topk(most)) if most else ([], [])
    picked = []
    for i, sampler in enumerate(samplers):
        config = sampler.config
        plain_greedy = config.temperature == 0 and config.repetition_penalty == 1.0
        token = greedy[i] if plain_greedy else pick(logits[i].cpu(), config, sampler.seen, sampler.random)
        if sampler.logprobs is None:
            picked.append(Picked(token))
            continue
        count = min(sampler.logprobs, most)
        top = tuple((ids[i][k], values[i][k] - normaliser[i]) for k in range(count))
        picked.append(Picked(token, float(logits[i, token]) - normaliser[i], top))
    return picked


def pick(logits: Tensor, config: GenerateConfig, seen: Tensor | None, random: torch.Generator) -> int:
    """One id from logits float32 [V] (dead rows -inf); `seen` [V] bool marks ids that the penalty weakens."""
    if config.repetition_penalty != 1.0 and seen is not None:
        weakened = torch.where(logits > 0, logits / config.repetition_penalty, logits * config.repetition_penalty)
        logits = torch.where(seen, weakened, logits)
    if config.temperature == 0:
        return int(logits.argmax())
    chance = float(torch.rand((), dtype=torch.float64, generator=random))
    scaled = logits / config.temperature
    if not config.top_k and config.top_p == 1.0 and not config.min_p:
        return _draw(scaled.softmax(-1), chance)
    normaliser = scaled.logsumexp(-1)
    for count in (min(CANDIDATES, len(scaled)), len(scaled)):
        value, order = scaled.topk(count)
        p = (value - normaliser).double().exp()
        if _enough(p, config, len(scaled)):
            break
    if config.top_k:
        p, order = p[: config.top_k], order[: config.top_k]
        p = p / p.sum()
    kept = (p.cumsum(-1) - p < config.top_p) & (p >= config.min_p * p[0])  # the mass before it is short of top_p
    return int(order[_draw(p * kept, chance)])


def _enough(p: Tensor, config: GenerateConfig, vocabulary: int) -> bool:
    """Whether the sorted candidates p hold everything that could be drawn."""
    if len(p) == vocabulary or 0 < config.top_k <= len(p):
        return True
    return float(p[-1]) < config.min_p * float(p[0]) or (not config.top_k and float(p.sum()) >= config.top_p)


def _draw(p: Tensor, chance: float) -> int:
    """The index at which the cumulated p passes `chance` of its sum."""
    total = p.cumsum(-1, dtype=torch.float64)
    found = int(torch.searchsorted(total, chance * total[-1], right=True))
    return found if found < len(p) else int(p.argmax())
