"""The layers as one Triton launch each way, with exact adjoints; twins of `reference`.

What leaves a forward pass for its adjoint: the sums, the states and, in the command layer, the denominators.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from . import Fans, Neurons, Sigmoids, kernels, padded

BLOCK_T, BLOCK_U = 32, 32
BLOCK_N, ROUNDS = 32, 8  # rows of activations a tile, tiles a program


def activate(x: Tensor, sigmoids: Sigmoids, dtype: torch.dtype) -> Tensor:
    """[B, T, P] in `dtype`, zero beyond the sources."""
    s: Tensor = _Activate.apply(x, *sigmoids, dtype)
    return s


def leaky_layer(
    sums: Tensor, neurons: Neurons, before: Tensor, keep: Tensor | None, following: Sigmoids | None
) -> tuple[Tensor, Tensor | None]:
    """States [B, T, U] and the activations [B, T, P] for the next bundle (in the dtype of `sums`)."""
    flags = None if keep is None else keep.contiguous().view(torch.uint8)
    out: tuple[Tensor, Tensor | None] = _Leaky.apply(sums, *neurons, before, flags, *(following or (None, None)))
    return out


def command_layer(
    sums: Tensor,
    neurons: Neurons,
    before: Tensor,
    keep: Tensor | None,
    following: Sigmoids,
    recurrent: tuple[Sigmoids, Tensor, Fans],
) -> tuple[Tensor, Tensor]:
    """As `leaky_layer`, with recurrent synapses of matrix [C, 2 C] that `Fans` lists."""
    flags = None if keep is None else keep.contiguous().view(torch.uint8)
    own, matrix, fans = recurrent
    out: tuple[Tensor, Tensor] = _Command.apply(sums, *neurons, before, flags, *following, *own, matrix, fans)
    return out


def _line_up(grad: Tensor | None, wide: int) -> Tensor | None:
    """Gradient of the states as rows of `wide` columns."""
    if grad is None:
        return None
    return torch.nn.functional.pad(grad, (0, wide - grad.shape[-1])).contiguous()


class _Activate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, sigma: Tensor, mu: Tensor, dtype: torch.dtype) -> Tensor:
        x = x.contiguous()
        U, P, N = x.shape[-1], padded(x.shape[-1]), x[..., 0].numel()
        s = x.new_empty(*x.shape[:-1], P, dtype=dtype)
        grid = (triton.cdiv(N, BLOCK_N), triton.cdiv(P, BLOCK_U))
        kernels.activate_forward[grid](x, sigma, mu, s, N, U, P, BLOCK_N=BLOCK_N, BLOCK_U=BLOCK_U)
        ctx.save_for_backward(x, sigma, mu)
        return s

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_s: Tensor) -> tuple[Tensor | None, ...]:
        x, sigma, mu = ctx.saved_tensors
        U, P, N = x.shape[-1], padded(x.shape[-1]), x[..., 0].numel()
        grad_x, rows = torch.empty_like(x), triton.cdiv(N, BLOCK_N * ROUNDS)
        parts = sigma.new_empty(rows, 2, U)
        kernels.activate_backward[(rows, triton.cdiv(U, BLOCK_U))](
            x, sigma, mu, grad_s.contiguous(), grad_x, parts, N, U, P, ROUNDS=ROUNDS, BLOCK_N=BLOCK_N, BLOCK_U=BLOCK_U
        )
        return grad_x, *parts.sum(0), None


class _Leaky(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        sums: Tensor,
        c: Tensor,
        pull: Tensor,
        load: Tensor,
        start: Tensor,
        before: Tensor,
        keep: Tensor | None,
        sigma: Tensor | None,
        mu: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        sums, before = sums.contiguous(), before.contiguous()
        (B, T, two), U = sums.shape, len(c)
        v = c.new_empty(B, T, two // 2)
        s = None if sigma is None else sums.new_empty(B, T, two // 2)
        grid = (B, triton.cdiv(two // 2, BLOCK_U))
        kernels.leaky_forward[grid](
            sums, c, pull, load, start, before, keep, sigma, mu, v, s, T, U, two // 2,
            KEEP=keep is not None, NEXT=s is not None, BLOCK_T=BLOCK_T, BLOCK_U=BLOCK_U,
        )  # fmt: skip
        ctx.save_for_backward(sums, c, load, start, before, keep, sigma, mu, v)
        ctx.set_materialize_grads(False)
        return v[..., :U], s

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_v: Tensor | None, grad_s: Tensor | None) -> tuple[Tensor | None, ...]:
        sums, c, load, start, before, keep, sigma, mu, v = ctx.saved_tensors
        (B, T, two), U = sums.shape, len(c)
        grad_sums, parts = torch.empty_like(sums), c.new_zeros(B, 7, U)
        grad_v, following = _line_up(grad_v, two // 2), grad_s is not None
        kernels.leaky_backward[(B, triton.cdiv(two // 2, BLOCK_U))](
            sums, c, load, start, before, keep, sigma, mu, v, grad_v,
            grad_s.contiguous() if grad_s is not None else None, grad_sums, parts, T, U, two // 2,
            KEEP=keep is not None, NEXT=following, OWN=grad_v is not None, BLOCK_T=BLOCK_T, BLOCK_U=BLOCK_U,
        )  # fmt: skip
        whole = parts[:, :6].sum(0)
        sigmoids = whole[4:] if sigma is not None else (None, None)
        return grad_sums, *whole[:4], parts[:, 6], None, *sigmoids


class _Command(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        sums: Tensor,
        c: Tensor,
        pull: Tensor,
        load: Tensor,
        start: Tensor,
        before: Tensor,
        keep: Tensor | None,
        sigma: Tensor,
        mu: Tensor,
        r_sigma: Tensor,
        r_mu: Tensor,
        matrix: Tensor,
        fans: Fans,
    ) -> tuple[Tensor, Tensor]:
        sums, before = sums.contiguous(), before.contiguous()
        (B, T, two), C = sums.shape, len(c)
        v, denominators = (c.new_empty(B, T, two // 2) for _ in range(2))
        s = sums.new_empty(B, T, two // 2)
        targets = torch.arange(C, device=sums.device).expand_as(fans.into)
        weights = _weights(matrix, fans.into.long(), targets, fans.into_real, c.dtype)
        kernels.command_forward[(B,)](
            sums, c, pull, load, start, before, keep, r_sigma, r_mu, fans.into, *weights, sigma, mu, v, denominators,
            s, c.new_empty(B, 2, _width(C)), T, C, two // 2, KEEP=keep is not None, DEGREE=len(fans.into), **_shape(C),
        )  # fmt: skip
        ctx.save_for_backward(c, start, before, keep, sigma, mu, r_sigma, r_mu, matrix, v, denominators)
        ctx.fans, ctx.narrow = fans, sums.dtype
        ctx.set_materialize_grads(False)
        return v[..., :C], s

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_v: Tensor | None, grad_s: Tensor | None) -> tuple[Tensor | None, ...]:
        c, start, before, keep, sigma, mu, r_sigma, r_mu, matrix, v, denominators = ctx.saved_tensors
        (B, T, P), C, fans = v.shape, len(c), ctx.fans
        grad_v = _line_up(grad_v, P)
        grad_s = v.new_zeros(B, T, P, dtype=ctx.narrow) if grad_s is None else grad_s.contiguous()
        grad_sums, spoken = v.new_empty(B, T, 2 * P, dtype=ctx.narrow), v.new_empty(B, T, P, dtype=ctx.narrow)
        parts = c.new_empty(B, 9, C)
        sources = torch.arange(C, device=v.device).expand_as(fans.out_of)
        weights = _weights(matrix, sources, fans.out_of.long(), fans.out_of_real, c.dtype)
        kernels.command_backward[(B,)](
            c, start, before, keep, r_sigma, r_mu, fans.out_of, *weights, sigma, mu, v, denominators, grad_v, grad_s,
            grad_sums, spoken, parts, c.new_empty(B, 4, _width(C)), T, C, P,
            KEEP=keep is not None, OWN=grad_v is not None, DEGREE=len(fans.out_of), **_shape(C),
        )  # fmt: skip
        whole = parts[:, :8].sum(0)
        grad_matrix = spoken.view(-1, P)[:, :C].mT @ grad_sums.view(-1, 2 * P)
        grad_matrix = torch.cat([grad_matrix[:, :C], grad_matrix[:, P : P + C]], dim=1).to(matrix.dtype)
        return grad_sums, *whole[:4], parts[:, 8], None, *whole[4:], grad_matrix, None


def _weights(matrix: Tensor, source: Tensor, target: Tensor, real: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """[degree, C] each, of numerator and denominator: the matrix at a fan's synapses, 0 where there is none."""
    picked = [matrix[source, target + half] * real for half in (0, matrix.shape[1] // 2)]
    return picked[0].to(dtype), picked[1].to(dtype)


def _width(neurons: int) -> int:
    return max(8, triton.next_power_of_2(neurons))


def _shape(neurons: int) -> dict[str, int]:
    width = _width(neurons)
    return {"WIDTH": width, "num_warps": min(8, max(1, width // 32))}
