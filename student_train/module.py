"""Student and loss in one module whose forward returns the loss: the shape that ZeRO-3 needs.

Under ZeRO-3 a parameter is whole only inside the forward and backward of the wrapped module, so the head's matmul,
which lives in the loss, has to happen in here.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from .config import LossConfig
from .kernels.linear_logsumexp_gather import linear_logsumexp_gather
from .losses import Targets, distill, mean_logit, with_label_column
from .model.lm import Student


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """Rows of tokens, right padded with 0; length, not id, says what is padding."""

    input_ids: Tensor  # int64 [B, T]
    lengths: Tensor  # int64 [B]
    reset: Tensor  # bool [B, T], True where a segment starts
    run_ids: Tensor  # int32 [B, T], index of the prompt run inside the row, -1 outside

    def to(self, device: torch.device) -> TokenBatch:
        """The same batch on `device`."""
        return TokenBatch(**{f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)})


def hidden_of(student: Student, batch: TokenBatch) -> Tensor:
    """[B, T, E] for whole rows; prompt runs count only where the student was told to use them."""
    run_ids = batch.run_ids if student.config.prompt_runs else None
    hidden: Tensor = student(batch.input_ids, reset=batch.reset, run_ids=run_ids, lengths=batch.lengths, carry=False)[0]
    return hidden


class DistillModule(nn.Module):
    """A student and what it is trained for."""

    def __init__(self, student: Student, loss: LossConfig, vocab_size: int) -> None:
        """`vocab_size`: real rows of the student's head; the others are dead."""
        super().__init__()
        self.student = student
        self.loss = loss
        self.vocab_size = vocab_size

    def forward(self, batch: TokenBatch, targets: Targets, scale: Tensor) -> tuple[Tensor, Tensor]:
        """One micro-batch.

        Args:
            batch: B rows.
            targets: their N scored positions.
            scale: float32 [], what the sum of weight * loss is multiplied with (see `loss_scale`).

        Returns:
            the scalar to differentiate, and [1 + P] detached sums of weight * (loss, parts...), unscaled.
        """
        hidden = hidden_of(self.student, batch).flatten(0, 1)[targets.index]
        weight, bias = self.student.head_weight, self.student.head_bias
        ids, mask = with_label_column(targets)
        picked, logsumexp = linear_logsumexp_gather(
            hidden,
            weight,
            ids,
            mask=mask,
            num_real=self.vocab_size,
            bias=bias,
            temperatures=self.loss.temperatures,
        )
        mean = mean_logit(hidden, weight, self.vocab_size, bias) if self.loss.label_smoothing else None
        loss, parts = distill(picked, logsumexp, targets, self.loss, mean)
        counts = targets.weight.to(loss.dtype)
        total = (counts * loss).sum()
        sums = torch.cat([total.detach()[None], parts.detach() @ counts])
        return total * scale, sums


def loss_scale(weight_sum: float, ranks: int, accumulation: int) -> float:
    """What makes DeepSpeed's gradient the gradient of (sum of weight * loss) / (sum of weights) over the global batch.

    DeepSpeed divides by the accumulation steps and averages over ranks, so that many are multiplied in again.
    """
    return ranks * accumulation / weight_sum if weight_sum > 0 else 0.0
