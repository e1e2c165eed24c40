"""A made-up language: a Markov chain over 37 tokens, with captures as a teacher that knows the chain would leave."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from shards import Capture, DatasetWriter, Header, Row, plan_shards, write_probe

VOCAB, VOCAB_ROWS = 37, 40


def transition() -> NDArray[np.float64]:
    """[V, V] the chain: row = current token."""
    logits = 2.5 * np.random.default_rng(11).standard_normal((VOCAB, VOCAB))
    p = np.exp(logits)
    return p / p.sum(1, keepdims=True)


def capture(p: NDArray[np.float64], labels: NDArray[np.int32], rng: np.random.Generator) -> Capture:
    """Head: up to 6 ids until mass 0.9; tail: ceil(8 * rest) draws."""
    order = np.argsort(-p, axis=1, kind="stable")
    ranked = np.take_along_axis(p, order, 1)
    sizes = np.minimum(6, (np.cumsum(ranked, 1) < 0.9).sum(1) + 1)
    heads, tails, counts, rest = [], [], [], []
    for row, ids, k in zip(p, order, sizes, strict=True):
        outside = row.copy()
        outside[ids[:k]] = 0
        drawn = rng.multinomial(int(np.ceil(8 * outside.sum())), outside / outside.sum())
        heads.append(ids[:k])
        tails.append(np.flatnonzero(drawn))
        counts.append(drawn[drawn > 0])
        rest.append(outside.sum())
    at = np.arange(len(p))
    return Capture(
        head_lengths=sizes.astype(np.uint16),
        head_ids=np.concatenate(heads).astype(np.int32),
        head_logprobs=np.log(np.concatenate([p[i, h] for i, h in enumerate(heads)])).astype(np.float32),
        rest_mass=np.asarray(rest, np.float32)[:, None],
        tail_lengths=np.asarray([len(t) for t in tails], np.uint16),
        tail_ids=np.concatenate(tails).astype(np.int32),
        tail_counts=np.concatenate(counts).astype(np.uint16),
        label_logprob=np.log(p[at, labels]).astype(np.float32),
        label_rank=(p > p[at, labels][:, None]).sum(1).astype(np.uint32),
        entropy=-(p * np.log(p)).sum(1).astype(np.float32),
    )


def make_rows(count: int, seed: int) -> Iterator[Row]:
    """Rows of 6 to 20 tokens, one or two segments, between 2 and all of their positions scored."""
    chain = transition()
    rng = np.random.default_rng(seed)
    for row_id in range(count):
        T = int(rng.integers(6, 21))
        ids = [int(rng.integers(VOCAB))]
        while len(ids) < T:
            ids.append(int(rng.choice(VOCAB, p=chain[ids[-1]])))
        starts = [0] if T < 12 else [0, T // 2]
        scored = np.zeros(T - 1, np.bool_)
        scored[int(rng.integers(0, T - 4)) :] = True
        scored[[s - 1 for s in starts[1:]]] = False
        input_ids = np.asarray(ids, np.int32)
        at = np.flatnonzero(scored)
        yield Row(
            row_id=row_id,
            input_ids=input_ids,
            segment_starts=np.asarray(starts, np.int32),
            prompt_runs=np.asarray([[0, 3]], np.int32),
            scored=scored,
            source="made-up",
            scored_bytes=2 * len(at),
            capture=capture(chain[input_ids[at]], input_ids[at + 1], rng),
        )


def write_split(folder: Path, count: int, seed: int) -> None:
    header = Header(
        kind="captures",
        num_rows=count,
        vocab_size=VOCAB,
        vocab_rows=VOCAB_ROWS,
        max_length=20,
        head_size=6,
        head_mass=0.9,
        tail={"draws_per_mass": 8},
        fingerprints={"teacher": "chain", "tokenizer": "words", "chat_template": "", "corpus": "made-up"},
    )
    rows = list(make_rows(count, seed))
    plan = plan_shards(count, 16)
    writer = DatasetWriter(folder, header, plan)
    for shard in plan:
        writer.write(shard, rows[shard.first_row : shard.first_row + shard.num_rows])
    writer.close()


def write_tokenizer(folder: Path) -> None:
    """Token i is the word `w<i>`."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCAB)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w1").save_pretrained(folder)


@pytest.fixture(scope="session")
def chain() -> NDArray[np.float64]:
    return transition()


@pytest.fixture(scope="session")
def rows_of() -> Callable[[int, int], list[Row]]:
    """rows_of(count, seed)."""
    return lambda count, seed: list(make_rows(count, seed))


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ (45 rows), val/ (20 rows), teacher/ with probe and tokenizer. Read-only for tests."""
    root = tmp_path_factory.mktemp("made-up") / "shards"
    write_split(root / "train", 45, 1)
    write_split(root / "val", 20, 2)
    write_tokenizer(root / "teacher" / "tokenizer")
    chain = transition()
    probe = [
        (r, int(i), np.log(chain[row.input_ids[i]]).astype(np.float16))
        for r, row in enumerate(make_rows(20, 2))
        for i in row.scored_positions()[:3]
    ]
    write_probe(root / "teacher" / "probe.arrow", probe, VOCAB)
    return root
