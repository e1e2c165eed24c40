"""Losses against dense float64 oracles that are written from their definitions over the whole vocabulary."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from shards.rows import Capture
from student_train.config import LossConfig
from student_train.losses import build_targets, cross_entropy, distill, forward_kl, hybrid, with_label_column

N, V = 6, 40


def teacher(seed=0, n=N):
    """float64 [n, V] distributions, peaked."""
    g = np.random.default_rng(seed)
    logits = 2.5 * g.standard_normal((n, V))
    p = np.exp(logits)
    return p / p.sum(1, keepdims=True)


def capture(p, head_sizes, draws, rng):
    """What the dump would store: the head of each position and `draws` ids from outside it."""
    head_ids, head_logprobs, tail_ids, tail_counts, tail_lengths, rest = [], [], [], [], [], []
    for row, k, m in zip(p, head_sizes, draws, strict=True):
        order = np.argsort(-row, kind="stable")
        outside = row.copy()
        outside[order[:k]] = 0.0
        rest.append(outside.sum())
        head_ids.append(order[:k])
        head_logprobs.append(np.log(row[order[:k]]))
        counts = rng.multinomial(m, outside / outside.sum()) if m else np.zeros(V, int)
        drawn = np.flatnonzero(counts)
        tail_ids.append(drawn)
        tail_counts.append(counts[drawn])
        tail_lengths.append(len(drawn))
    n = len(p)
    return Capture(
        head_lengths=np.asarray(head_sizes, np.uint16),
        head_ids=np.concatenate(head_ids).astype(np.int32),
        head_logprobs=np.concatenate(head_logprobs).astype(np.float32),
        rest_mass=np.asarray(rest, np.float32)[:, None],
        tail_lengths=np.asarray(tail_lengths, np.uint16),
        tail_ids=np.concatenate(tail_ids).astype(np.int32),
        tail_counts=np.concatenate(tail_counts).astype(np.uint16),
        label_logprob=np.zeros(n, np.float32),
        label_rank=np.zeros(n, np.uint32),
        entropy=(-(p * np.log(p)).sum(1)).astype(np.float32),
    )


def targets_of(p, head_sizes, draws, seed=0):
    labels = np.arange(len(p)) % V
    built = build_targets(np.arange(len(p)), labels, [capture(p, head_sizes, draws, np.random.default_rng(seed))])
    return replace(built, **{k: getattr(built, k).double() for k in ("q", "logprobs", "rest", "entropy", "weight")})


def evaluate(loss, logits, targets):
    """Loss [N] from dense logits."""
    return loss(logits.gather(1, targets.ids).masked_fill(~targets.mask, 0), torch.logsumexp(logits, 1), targets)


def student(seed=9, n=N):
    return torch.from_numpy(2 * np.random.default_rng(seed).standard_normal((n, V))).requires_grad_()


def full_kl(p, logits):
    p = torch.from_numpy(p)
    return (p * (p.log() - torch.log_softmax(logits, 1))).sum(1)


HEADS, DRAWS = [1, 3, 8, 0, 5, 2], [12, 4, 1, 30, 7, 9]


def test_the_hybrid_target_sums_to_one_and_is_head_plus_counts():
    p = teacher()
    t = targets_of(p, HEADS, DRAWS)
    torch.testing.assert_close(t.q.sum(1), torch.ones(N, dtype=torch.float64), rtol=1e-6, atol=1e-6)
    order = np.argsort(-p[1], kind="stable")
    assert t.ids[1, :3].tolist() == order[:3].tolist()
    np.testing.assert_allclose(t.q[1, :3].numpy(), p[1][order[:3]], rtol=1e-5)
    assert t.head_mask.sum(1).tolist() == HEADS
    assert (t.q * (~t.head_mask)).sum(1).numpy() == pytest.approx(t.rest.numpy(), rel=1e-5)


def test_the_hybrid_loss_is_the_cross_entropy_to_q_minus_the_entropy():
    p, logits = teacher(), student()
    t = targets_of(p, HEADS, DRAWS)
    q = torch.zeros(N, V, dtype=torch.float64).scatter_add_(1, t.ids, t.q)
    oracle = -(q * torch.log_softmax(logits, 1)).sum(1) - t.entropy
    loss = evaluate(hybrid, logits, t)
    torch.testing.assert_close(loss, oracle)
    ours, law = (torch.autograd.grad(x.sum(), logits, retain_graph=True)[0] for x in (loss, oracle))
    torch.testing.assert_close(ours, law)


def test_the_hybrid_loss_and_gradient_are_unbiased():
    p = np.repeat(teacher(n=2), 4000, axis=0)
    base = student(n=2)
    logits = base.detach().repeat_interleave(4000, 0).requires_grad_()
    t = targets_of(p, [3] * 8000, [5] * 8000, seed=3)
    loss = evaluate(hybrid, logits, t)
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    exact = full_kl(p, logits)
    (exact_grad,) = torch.autograd.grad(exact.sum(), logits)
    share = torch.from_numpy(p) / t.rest[:, None]
    share[t.head_mask.new_zeros(share.shape).scatter_(1, t.ids[:, :3], True)] = 0.0
    variance = t.rest[:, None] ** 2 * share * (1 - share) / 5
    for name, error, spread in (
        ("value", (loss - exact)[:, None], (loss - exact)[:, None].reshape(2, 4000, 1).std(1)),
        ("gradient", grad - exact_grad, variance.reshape(2, 4000, V)[:, 0].sqrt()),
    ):
        z = error.detach().reshape(2, 4000, -1).mean(1) / (spread / 4000**0.5 + 1e-7)
        assert z.abs().max() < 5, (name, float(z.abs().max()))


def test_forward_kl_equals_the_dense_event_kl():
    p, logits = teacher(), student()
    t = targets_of(p, HEADS, DRAWS)
    s = torch.softmax(logits, 1)
    oracle = []
    for n, k in enumerate(HEADS):
        head = np.argsort(-p[n], kind="stable")[:k]
        rest = 1 - p[n][head].sum()
        terms = [p[n][i] * (np.log(p[n][i]) - s[n, i].log()) for i in head]
        oracle.append(sum(terms) + rest * (np.log(rest) - (1 - s[n, torch.from_numpy(head)].sum()).log()))
    oracle = torch.stack(oracle)
    loss = evaluate(forward_kl, logits, t)
    torch.testing.assert_close(loss, oracle, rtol=1e-5, atol=1e-6)
    ours, law = (torch.autograd.grad(x.sum(), logits, retain_graph=True)[0] for x in (loss, oracle))
    torch.testing.assert_close(ours, law, rtol=1e-5, atol=1e-6)


def test_forward_kl_is_zero_at_equality_and_never_above_the_full_divergence():
    p = teacher()
    t = targets_of(p, HEADS, DRAWS)
    assert evaluate(forward_kl, torch.from_numpy(np.log(p)), t).abs().max() < 1e-6
    for seed in range(20):
        logits = student(seed)
        bound, full = evaluate(forward_kl, logits, t), full_kl(p, logits)
        assert (bound <= full + 1e-6).all(), (seed, (bound - full).max())
        assert (bound >= -1e-6).all()


def test_without_draws_the_hybrid_loss_takes_the_rest_as_a_bucket():
    p, logits = teacher(), student()
    t = targets_of(p, [4] * N, [0] * N)
    torch.testing.assert_close(evaluate(hybrid, logits, t), evaluate(forward_kl, logits, t))
    assert evaluate(hybrid, torch.from_numpy(np.log(p)), t).abs().max() < 1e-6


def test_nearly_all_mass_in_the_head_keeps_loss_and_gradient_finite_in_float32():
    logits = torch.full((1, V), -40.0)
    logits[0, 7] = 10.0
    logits.requires_grad_()
    p = np.full((1, V), 1e-3 / (V - 1))
    p[0, 7] = 1 - 1e-3
    t = build_targets(np.arange(1), np.zeros(1), [capture(p, [1], [0], np.random.default_rng(0))])
    loss = evaluate(forward_kl, logits, t)
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    assert torch.isfinite(loss).all()
    assert torch.isfinite(grad).all()
    assert grad.abs().max() <= 1.0


def test_distill_is_the_weighted_sum_of_its_named_parts():
    p, logits = teacher(), student()
    t = targets_of(p, HEADS, DRAWS)
    config = LossConfig(hybrid=0.7, forward_kl=0.0, cross_entropy=0.2)
    ids, mask = with_label_column(t)
    lse = torch.logsumexp(logits, 1)
    loss, parts = distill(logits.gather(1, ids).masked_fill(~mask, 0), lse, t, config)
    ce = torch.nn.functional.cross_entropy(logits, t.labels, reduction="none")
    torch.testing.assert_close(parts, torch.stack([evaluate(hybrid, logits, t), ce]))
    torch.testing.assert_close(loss, 0.7 * evaluate(hybrid, logits, t) + 0.2 * ce)
    torch.testing.assert_close(cross_entropy(logits.gather(1, t.labels[:, None])[:, 0], lse), ce)


def test_a_micro_batch_without_positions_weighs_nothing_and_is_finite():
    t = build_targets(np.zeros(0, np.int64), np.zeros(0, np.int64), [])
    assert t.weight.tolist() == [0.0]
    ids, mask = with_label_column(t)
    logits = torch.randn(1, V)
    loss, parts = distill(
        logits.gather(1, ids).masked_fill(~mask, 0),
        torch.logsumexp(logits, 1),
        t,
        LossConfig(hybrid=1, forward_kl=1, cross_entropy=1),
    )
    assert torch.isfinite(loss).all()
    assert torch.isfinite(parts).all()
