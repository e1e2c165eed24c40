"""Losses against dense float64 oracles that are written from their definitions over the whole vocabulary."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from shards.rows import Capture
from student_train.config import LOSS_PARTS, LossConfig
from student_train.losses import (
    build_targets,
    cross_entropy,
    distill,
    forward_kl,
    hybrid,
    mean_logit,
    position_weights,
    with_label_column,
)

N, V = 6, 40


def teacher(seed=0, n=N):
    """float64 [n, V] distributions, peaked."""
    g = np.random.default_rng(seed)
    logits = 2.5 * g.standard_normal((n, V))
    p = np.exp(logits)
    return p / p.sum(1, keepdims=True)


T = 2.0


def tempered(p, temperature):
    """The distribution at a temperature."""
    p = p ** (1 / temperature)
    return p / p.sum(-1, keepdims=True)


def capture(p, head_sizes, draws, rng):
    """What the dump would store: the head of each position, `draws` ids from outside it, rest masses at 1 and T."""
    head_ids, head_logprobs, tail_ids, tail_counts, tail_lengths, rest = [], [], [], [], [], []
    for row, k, m in zip(p, head_sizes, draws, strict=True):
        order = np.argsort(-row, kind="stable")
        outside = row.copy()
        outside[order[:k]] = 0.0
        rest.append([outside.sum(), tempered(row, T)[order[k:]].sum()])
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
        rest_mass=np.asarray(rest, np.float32),
        tail_lengths=np.asarray(tail_lengths, np.uint16),
        tail_ids=np.concatenate(tail_ids).astype(np.int32),
        tail_counts=np.concatenate(tail_counts).astype(np.uint16),
        label_logprob=np.log(p[np.arange(n), np.arange(n) % V]).astype(np.float32),
        label_rank=np.zeros(n, np.uint32),
        entropy=(-(p * np.log(p)).sum(1)).astype(np.float32),
    )


EXACT = ("q", "logprobs", "rest", "tempered_rest", "label_logprob", "entropy", "weight")


def targets_of(p, head_sizes, draws, seed=0):
    labels = np.arange(len(p)) % V
    built = build_targets(
        np.arange(len(p)), labels, [capture(p, head_sizes, draws, np.random.default_rng(seed))], None, 1
    )
    return replace(built, **{k: getattr(built, k).double() for k in EXACT})


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
    p = np.repeat(teacher(n=2), 10_000, axis=0)
    base = student(n=2)
    logits = base.detach().repeat_interleave(10_000, 0).requires_grad_()
    t = targets_of(p, [3] * 20_000, [5] * 20_000, seed=3)
    loss = evaluate(hybrid, logits, t)
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    exact = full_kl(p, logits)
    (exact_grad,) = torch.autograd.grad(exact.sum(), logits)
    share = torch.from_numpy(p) / t.rest[:, None]
    share[t.head_mask.new_zeros(share.shape).scatter_(1, t.ids[:, :3], True)] = 0.0
    variance = t.rest[:, None] ** 2 * share * (1 - share) / 5
    for name, error, spread in (
        ("value", (loss - exact)[:, None], (loss - exact)[:, None].reshape(2, 10_000, 1).std(1)),
        ("gradient", grad - exact_grad, variance.reshape(2, 10_000, V)[:, 0].sqrt()),
    ):
        z = error.detach().reshape(2, 10_000, -1).mean(1) / (spread / 10_000**0.5 + 1e-7)
        assert z.abs().max() < 5, (name, float(z.abs().max()))


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
    lse = torch.logsumexp(logits, 1, keepdim=True)
    loss, parts = distill(logits.gather(1, ids).masked_fill(~mask, 0), lse, t, config)
    ce = torch.nn.functional.cross_entropy(logits, t.labels, reduction="none")
    torch.testing.assert_close(parts, torch.stack([evaluate(hybrid, logits, t), ce]))
    torch.testing.assert_close(loss, 0.7 * evaluate(hybrid, logits, t) + 0.2 * ce)
    torch.testing.assert_close(cross_entropy(logits.gather(1, t.labels[:, None])[:, 0], lse[:, 0]), ce)


def test_a_micro_batch_without_positions_weighs_nothing_and_is_finite():
    t = build_targets(np.zeros(0, np.int64), np.zeros(0, np.int64), [])
    assert t.weight.tolist() == [0.0]
    ids, mask = with_label_column(t)
    logits = torch.randn(1, V)
    loss, parts = distill(
        logits.gather(1, ids).masked_fill(~mask, 0),
        torch.logsumexp(logits, 1, keepdim=True).expand(1, 2),
        t,
        LossConfig(temperature=2, **dict.fromkeys(LOSS_PARTS, 1)),
    )
    assert torch.isfinite(loss).all()
    assert torch.isfinite(parts).all()


def by_events(p, s, n, head_size, label=None):
    """Both distributions of position n, coarsened from the whole vocabulary to {head ids, label, rest}."""
    p = torch.from_numpy(p[n])
    head = torch.argsort(-p, stable=True)[:head_size].tolist()
    alone = head if label is None or label in head else [*head, label]
    others = [v for v in range(V) if v not in alone]
    return (torch.cat([x[alone], x[others].sum()[None]]) for x in (p, s[n]))


def kl(p, s):
    return (p * (p.log() - s.log())).sum()


def mixture(p, s, beta=0.3):
    m = beta * p + (1 - beta) * s
    return beta * kl(p, m) + (1 - beta) * kl(s, m)


def chain_rule(p, s, temperature):
    inside = [x[:-1] ** (1 / temperature) / (x[:-1] ** (1 / temperature)).sum() for x in (p, s)]
    mass = [torch.stack([x[:-1].sum(), x[-1]]) for x in (p, s)]
    conditional = kl(*inside) if len(p) > 1 else 0.0
    mass_term = kl(*mass) if len(p) > 1 else 0.0
    return mass_term + (1 - p[-1]) * temperature**2 * conditional


def values(name, logits, targets, temperature=1.0):
    """One loss by name, from dense logits."""
    ids, mask = with_label_column(targets)
    lse = torch.stack([torch.logsumexp(logits / t, 1) for t in (1.0, temperature)], 1)
    settings = {"hybrid": 0, "cross_entropy": 0, name: 1}
    config = LossConfig(temperature=temperature, jsd_beta=0.3, **settings)
    return distill(logits.gather(1, ids).masked_fill(~mask, 0), lse[:, : len(config.temperatures)], targets, config)[0]


ON_EVENTS = {
    "forward_kl": lambda p, s: kl(p, s),
    "label_residual": lambda p, s: kl(p, s),
    "decoupled": lambda p, s: kl(p, s),
    "reverse_kl": lambda p, s: kl(s, p),
    "jsd": mixture,
}


@pytest.mark.parametrize("name", ON_EVENTS)
def test_a_loss_on_events_equals_its_dense_definition(name):
    p, logits = teacher(), student()
    t = targets_of(p, HEADS, DRAWS)
    s = torch.softmax(logits, 1)
    labels = t.labels.tolist() if name == "label_residual" else [None] * N
    oracle = torch.stack([ON_EVENTS[name](*by_events(p, s, n, HEADS[n], labels[n])) for n in range(N)])
    loss = values(name, logits, t)
    torch.testing.assert_close(loss, oracle, rtol=1e-5, atol=1e-6)
    ours, law = (torch.autograd.grad(x.sum(), logits, retain_graph=True)[0] for x in (loss, oracle))
    torch.testing.assert_close(ours, law, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jsd"])
def test_at_a_stored_temperature_a_loss_is_t_squared_times_its_dense_definition(name):
    p, logits = teacher(), student()
    t = targets_of(p, HEADS, DRAWS)
    s = torch.softmax(logits / T, 1)
    oracle = T**2 * torch.stack([ON_EVENTS[name](*by_events(tempered(p, T), s, n, HEADS[n])) for n in range(N)])
    loss = values(name, logits, t, T)
    torch.testing.assert_close(loss, oracle, rtol=1e-5, atol=1e-5)
    ours, law = (torch.autograd.grad(x.sum(), logits, retain_graph=True)[0] for x in (loss, oracle))
    torch.testing.assert_close(ours, law, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_decoupled_loss_tempers_inside_the_head_only(temperature):
    p, logits = teacher(), student()
    t = targets_of(p, HEADS, DRAWS)
    s = torch.softmax(logits, 1)
    oracle = torch.stack([chain_rule(*by_events(p, s, n, HEADS[n]), temperature) for n in range(N)])
    loss = values("decoupled", logits, t, temperature)
    torch.testing.assert_close(loss, oracle, rtol=1e-5, atol=1e-5)
    ours, law = (torch.autograd.grad(x.sum(), logits, retain_graph=True)[0] for x in (loss, oracle))
    torch.testing.assert_close(ours, law, rtol=1e-5, atol=1e-5)


def test_t_squared_keeps_the_size_of_the_gradient():
    p, logits = teacher(), student()
    sizes = {}
    for temperature in (100.0, 200.0):
        t = replace(
            targets_of(p, [V - 1] * N, [0] * N),
            tempered_rest=torch.from_numpy(np.sort(tempered(p, temperature), axis=1)[:, 0]),
        )
        sizes[temperature] = torch.autograd.grad(values("forward_kl", logits, t, temperature).sum(), logits)[0].norm()
    assert float(sizes[100.0] / sizes[200.0]) == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("name", ON_EVENTS)
def test_a_loss_on_events_is_zero_at_equality_and_never_above_the_full_divergence(name):
    p = teacher()
    t = targets_of(p, HEADS, DRAWS)
    assert values(name, torch.from_numpy(np.log(p)), t).abs().max() < 1e-6
    for seed in range(20):
        logits = student(seed)
        s = torch.softmax(logits, 1)
        full = torch.stack([ON_EVENTS[name](torch.from_numpy(p[n]), s[n]) for n in range(N)])
        bound = values(name, logits, t)
        assert (bound <= full + 1e-6).all(), (seed, float((bound - full).max()))
        assert (bound >= -1e-6).all(), (seed, float(bound.min()))


def test_the_label_as_an_event_can_only_add_to_forward_kl():
    p, logits = teacher(), student()
    t = targets_of(p, HEADS, DRAWS)
    inside = (t.head_mask & (t.ids == t.labels[:, None])).any(1)
    more = values("label_residual", logits, t) - values("forward_kl", logits, t)
    assert (more >= -1e-6).all()
    assert more[~inside].max() > 1e-3


def test_the_renormalised_baseline_is_biased_by_the_mass_it_forgets():
    p = teacher()
    t = targets_of(p, [1, 3, 8, 4, 5, 2], DRAWS)
    at_equality = values("renormalised", torch.from_numpy(np.log(p)), t)
    torch.testing.assert_close(at_equality, -torch.log1p(-t.rest), rtol=1e-5, atol=1e-6)
    log_s = torch.log_softmax(student(), 1)
    for n, k in enumerate([1, 3, 8, 4, 5, 2]):
        head = np.argsort(-p[n], kind="stable")[:k]
        scaled = torch.from_numpy(p[n][head] / p[n][head].sum())
        oracle = (scaled * (scaled.log() - log_s[n, torch.from_numpy(head)])).sum()
        assert float(values("renormalised", student(), t)[n].detach()) == pytest.approx(
            float(oracle.detach()), rel=1e-5
        )


def test_label_smoothing_goes_through_the_mean_row_and_equals_torch():
    g = torch.Generator().manual_seed(0)
    hidden, weight, bias = (
        torch.randn(*s, generator=g).double().requires_grad_() for s in ((N, 5), (V + 3, 5), (V + 3,))
    )
    labels = torch.arange(N)
    logits = (hidden @ weight.T + bias)[:, :V]
    law = torch.nn.functional.cross_entropy(logits, labels, reduction="none", label_smoothing=0.1)
    mean = mean_logit(hidden, weight, V, bias)
    ours = cross_entropy(logits.gather(1, labels[:, None])[:, 0], torch.logsumexp(logits, 1), mean, 0.1)
    torch.testing.assert_close(ours, law)
    for a, b in zip(
        *(torch.autograd.grad(x.sum(), (hidden, weight, bias), retain_graph=True) for x in (ours, law)), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_positions_weigh_by_entropy_and_source():
    config = LossConfig(entropy_power=2, source_weights={"code": 0.5})
    entropy = np.asarray([0.0, 1.0, 3.0], np.float32)
    np.testing.assert_allclose(position_weights(config, entropy, "code"), [0.5, 2.0, 8.0])
    np.testing.assert_allclose(position_weights(config, entropy, "prose"), [1.0, 4.0, 16.0])
    np.testing.assert_allclose(position_weights(LossConfig(), entropy, "code"), 1.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hybrid": 0, "cross_entropy": 0}, "all loss weights are 0"),
        ({"temperature": 2.0}, "temperature 2.0 has no effect"),
        ({"cross_entropy": 0, "label_smoothing": 0.1}, "label_smoothing 0.1 has no effect"),
        ({"source_weights": {"code": -1}}, "greater than or equal to 0"),
    ],
)
def test_settings_without_an_effect_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        LossConfig(**settings)
