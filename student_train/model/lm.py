"""The student language model: embedding, attention encoder, LTC-NCP blocks, tied head. No loss, no sampling.

A position's hidden vector depends on its segment up to itself; with `run_ids` also on the rest of its own prompt run.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..config import StudentConfig
from .attention import look
from .block import NORM_EPS, EncoderBlock, LiquidBlock
from .segments import find_segments
from .state import State


class Student(nn.Module):
    """B rows, T time, D width, E embedding width, V rows of the embedding table."""

    def __init__(self, config: StudentConfig, vocab_size: int, vocab_rows: int) -> None:
        """`vocab_size` real rows out of `vocab_rows`; the others are dead (logit -inf)."""
        super().__init__()
        assert 0 < vocab_size <= vocab_rows
        self.config, self.vocab_size, self.vocab_rows = config, vocab_size, vocab_rows
        width, embedding = config.hidden_size, config.embedding_size or config.hidden_size
        self.embedding = nn.Embedding(vocab_rows, embedding)
        self.lift = nn.Identity() if config.embedding_size is None else nn.Linear(embedding, width, bias=False)
        self.encoder = nn.ModuleList(EncoderBlock(config) for _ in range(config.encoder.layers))
        self.blocks = nn.ModuleList(LiquidBlock(config) for _ in range(config.blocks))
        self.norm = nn.RMSNorm(width, eps=NORM_EPS)
        self.lower = nn.Identity() if config.embedding_size is None else nn.Linear(width, embedding, bias=False)
        self.head_bias = nn.Parameter(torch.zeros(vocab_rows))
        self.recompute = False
        """Activation checkpointing: each layer keeps its input only, and runs again in the backward pass."""
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        """Normal(0, .02) tables, LeCun-scaled maps, residual branches shrunk by depth; cells have their own."""
        branches = 2 * (len(self.encoder) + len(self.blocks))
        nn.init.normal_(self.embedding.weight, std=0.02)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                scale = 1 / math.sqrt(branches) if name.endswith((".out", ".down")) else 1.0
                nn.init.normal_(module.weight, std=scale / math.sqrt(module.in_features))

    @property
    def head_weight(self) -> nn.Parameter:
        """[V, E], the embedding table itself."""
        weight = self.embedding.weight
        assert isinstance(weight, nn.Parameter)
        return weight

    def init_state(self, batch: int) -> State:
        """The state before any token, for `batch` rows."""
        like = self.head_weight
        layers = [*self.encoder, *self.blocks]
        return State(tuple(layer.init_state(batch, like.dtype, like.device) for layer in layers))

    def forward(
        self,
        input_ids: Tensor,
        reset: Tensor | None = None,
        run_ids: Tensor | None = None,
        lengths: Tensor | None = None,
        state: State | None = None,
        carry: bool = True,
    ) -> tuple[Tensor, State]:
        """Hidden vectors [B, T, E] ready for the head, and the state after each row's last real token.

        input_ids: int64 [B, T], right-padded (padding is what lies beyond `lengths`, whatever the id).
        reset: bool [B, T], True where a segment starts: nothing before it is seen. None: the rows go on from `state`.
        run_ids: int [B, T], tokens with one id >= 0 arrived together and see each other both ways; -1 elsewhere.
            A run must lie inside one call. None: strictly causal.
        lengths: int64 [B] real tokens of each row (0: the row's state stays as it was). None: T.
        state: what an earlier call returned. None: fresh rows.
        carry: False saves the work of building the returned state, which is then empty; for training.
        """
        segments = find_segments(input_ids.shape[1], reset, run_ids, lengths)
        x = self.lift(self.embedding(input_ids) * math.sqrt(self.embedding.embedding_dim))
        before = state.layers if state is not None else (None,) * (len(self.encoder) + len(self.blocks))
        after = []
        if len(self.encoder):
            heads, window = self.config.encoder.heads, self.config.encoder.window
            seen = None if state is None else state.layers[0]["seen"]
            sight = look(x, self.config.hidden_size // heads, window, segments, seen)
            for layer, own in zip(self.encoder, before, strict=False):
                x, own = self._through(layer, x, sight, segments, own, carry)
                after.append(own)
        for layer, own in zip(self.blocks, before[len(self.encoder) :], strict=True):
            x, own = self._through(layer, x, segments, own)
            after.append(own)
        return self.lower(self.norm(x)), State(tuple(after) if carry else ())

    def _through(self, layer: nn.Module, *given: Any) -> Any:
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(layer, *given, use_reentrant=False)
        return layer(*given)

    def logits(self, hidden: Tensor) -> Tensor:
        """float32 (or wider) [.., V] with -inf at dead rows; for a few positions at a time, never a whole batch."""
        logits = nn.functional.linear(hidden, self.head_weight, self.head_bias)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        dead = torch.arange(self.vocab_rows, device=logits.device) >= self.vocab_size
        return logits.masked_fill(dead, -math.inf)

    @property
    def wiring_digest(self) -> str:
        """sha256 of the wiring that all blocks share: a checkpoint's neurons mean nothing under another."""
        block = self.blocks[0]
        assert isinstance(block, LiquidBlock)
        return block.mixer.cell.wiring.digest

    def decay_groups(self) -> tuple[list[str], list[str]]:
        """Parameter names with and without weight decay: matrices, and everything else (vectors, the cells)."""
        decayed: list[str] = []
        free: list[str] = []
        for name, p in self.named_parameters():
            (decayed if p.dim() >= 2 and ".cell." not in name and ".conv." not in name else free).append(name)
        return decayed, free
