"""Evaluation on a made-up language whose teacher is known, against sums over the whole vocabulary in numpy."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from shards.errors import UserError
from shards.job import silent
from student_train.build import build_student
from student_train.config import CellConfig, EncoderConfig, EvalConfig, EvalJob, StudentConfig, TrainConfig
from student_train.evaluate import run
from student_train.model.files import save_model
from student_train.scores import mean_and_error

TRAIN = TrainConfig(
    student=StudentConfig(
        hidden_size=16, encoder=EncoderConfig(layers=1, heads=2, window=8), blocks=1, cell=CellConfig(units=16)
    ),
    seed=5,
)
V = 37


def student():
    """The twin of seed 5 with something in its bias."""
    made = build_student(TRAIN, V, 40)
    with torch.no_grad():
        made.head_bias.copy_(torch.linspace(-1, 1, 40))
    return made.eval()


@pytest.fixture(scope="module")
def evaluation(shards, tmp_path_factory):
    """eval.json of that student."""
    folder = tmp_path_factory.mktemp("eval")
    save_model(folder / "model", student(), shards / "teacher" / "tokenizer", {})
    job = EvalJob(
        eval=EvalConfig(samples=3, prompt="w3 w4", max_new_tokens=4),
        train=TRAIN,
        model=folder / "model",
        shards=shards,
        output=folder / "eval",
        digest="d",
    )
    run(job, silent)
    return json.loads((folder / "eval" / "eval.json").read_text())


def dense(rows, chain, logprobs_of):
    """Teacher [N, V], log-probabilities of a predictor [N, V], labels [N], a row at a time."""
    p, log_s, labels = [], [], []
    for row in rows:
        at = row.scored_positions()
        p.append(chain[row.input_ids[at]])
        log_s.append(logprobs_of(row)[at])
        labels.append(row.labels())
    return np.concatenate(p), np.concatenate(log_s), np.concatenate(labels)


@torch.no_grad()
def logprobs(model, row):
    ids = torch.from_numpy(row.input_ids.astype(np.int64))[None]
    hidden, _ = model(ids, reset=torch.from_numpy(row.reset())[None])
    return torch.log_softmax(model.logits(hidden)[0, :, :V].double(), 1).numpy()


def of_student(row):
    return logprobs(student(), row)


def test_figures_of_the_student_match_sums_over_the_whole_vocabulary(evaluation, rows_of, chain):
    p, log_s, labels = dense(rows_of(20, 2), chain, of_student)
    ours = evaluation["student"]
    n = np.arange(len(labels))
    assert evaluation["positions"] == len(labels)
    assert ours["cross_entropy"] == pytest.approx(-log_s[n, labels].mean(), rel=1e-5)
    assert ours["perplexity"] == pytest.approx(np.exp(-log_s[n, labels].mean()), rel=1e-5)
    assert ours["bits_per_byte"] == pytest.approx(-np.log2(np.e) * log_s[n, labels].mean() / 2, rel=1e-5)
    assert ours["top1_agreement"] == pytest.approx((log_s.argmax(1) == p.argmax(1)).mean())
    kl = (p * (np.log(p) - log_s)).sum(1).mean()
    assert abs(ours["kl_estimate"] - kl) < 4 * ours["kl_estimate_error"]
    assert 0 < ours["kl_estimate_error"] < 0.2
    assert ours["transfer"] == pytest.approx(np.exp(-ours["kl_estimate"]))
    assert ours["overall"] == pytest.approx((ours["consistency"] + ours["transfer"]) / 2)


def test_consistency_is_the_share_of_the_teachers_stored_top_ids_among_the_students_five(evaluation, rows_of, chain):
    p, log_s, _ = dense(rows_of(20, 2), chain, of_student)
    shares = []
    for teacher, mine in zip(p, log_s, strict=True):
        order = np.argsort(-teacher, kind="stable")
        stored = min(6, int((np.cumsum(teacher[order]) < 0.9).sum()) + 1)
        theirs = set(order[: min(5, stored)].tolist())
        shares.append(len(theirs & set(np.argsort(-mine)[:5].tolist())) / len(theirs))
    assert evaluation["student"]["consistency"] == pytest.approx(np.mean(shares))


def test_exact_kl_is_that_of_the_probe_positions(evaluation, rows_of, chain):
    kl = []
    for row in rows_of(20, 2):
        at = row.scored_positions()[:3]
        p, log_s = chain[row.input_ids[at]], of_student(row)[at]
        kl += (p * (np.log(p) - log_s)).sum(1).tolist()
    assert evaluation["probe_positions"] == len(kl)
    assert evaluation["student"]["kl_exact"] == pytest.approx(np.mean(kl), rel=2e-3)  # float16 log-probabilities
    assert 0 < evaluation["student"]["acceptance"] < 1


def test_the_unigram_is_that_of_the_training_labels(evaluation, rows_of, chain):
    counts = np.bincount(np.concatenate([r.labels() for r in rows_of(45, 1)]), minlength=V)
    smoothed = counts + (counts > 0).sum() / V
    log_u = np.log(smoothed / smoothed.sum())
    _, log_s, labels = dense(rows_of(20, 2), chain, lambda row: np.tile(log_u, (row.num_tokens, 1)))
    expected = -log_s[np.arange(len(labels)), labels].mean()
    assert evaluation["unigram"]["cross_entropy"] == pytest.approx(expected, rel=1e-5)


def test_the_untrained_twin_has_the_same_seed_and_no_bias(evaluation, rows_of, chain):
    twin = build_student(TRAIN, V, 40)
    assert twin.head_bias.abs().max() == 0
    _, log_s, labels = dense(rows_of(20, 2), chain, lambda row: logprobs(twin, row))
    expected = -log_s[np.arange(len(labels)), labels].mean()
    assert evaluation["untrained"]["cross_entropy"] == pytest.approx(expected, rel=1e-5)


def test_the_teachers_own_figures_stand_beside(evaluation, rows_of, chain):
    p, _, labels = dense(rows_of(20, 2), chain, lambda row: np.zeros((row.num_tokens, V)))
    expected = -np.log(p[np.arange(len(labels)), labels]).mean()
    assert evaluation["teacher"]["cross_entropy"] == pytest.approx(expected, rel=1e-3)
    assert evaluation["teacher"]["entropy"] == pytest.approx(-(p * np.log(p)).sum(1).mean(), rel=1e-3)


def test_samples_show_real_text_with_both_distributions(evaluation, chain):
    assert len(evaluation["samples"]) == 3
    for sample in evaluation["samples"]:
        last = int(sample["context"].split()[-1].removeprefix("w"))
        order = np.argsort(-chain[last])[:5]
        assert [token for token, _ in sample["teacher"]] == [f"w{i}" for i in order]
        np.testing.assert_allclose([p for _, p in sample["teacher"]], chain[last][order], rtol=2e-3)
        assert len(sample["student"]) == 5
        assert sample["label"].startswith("w")
    assert evaluation["generated"]["prompt"] == "w3 w4"


def test_a_student_of_another_vocabulary_is_refused(shards, tmp_path):
    save_model(tmp_path / "model", build_student(TRAIN, 30, 40), None, {})
    job = EvalJob(
        eval=EvalConfig(), train=TRAIN, model=tmp_path / "model", shards=shards, output=tmp_path / "eval", digest="d"
    )
    with pytest.raises(UserError, match=r"made for 30 tokens, .* has 37"):
        run(job, silent)


def test_the_standard_error_counts_rows_not_positions():
    values = torch.tensor([1.0, 2.0, 4.0, 5.0], dtype=torch.float64)
    mean, alone = mean_and_error(values, torch.tensor([7, 1, 2, 5]))
    assert mean == 3.0
    assert alone == pytest.approx(float(values.std()) / 2)
    _, twice = mean_and_error(values.repeat_interleave(2), torch.tensor([7, 7, 1, 1, 2, 2, 5, 5]))
    assert twice == pytest.approx(alone), "repeating every position adds no information"
