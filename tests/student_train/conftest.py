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


@pytest.fixture(scope="session")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained student of random temper with a byte-level tokenizer (one token a byte) and a chat template."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from student_train.config import CellConfig, EncoderConfig, StudentConfig
    from student_train.model.files import save_model
    from student_train.model.lm import Student

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|im_end|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|endoftext|>"]})
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    path = tmp_path_factory.mktemp("talker")
    tokenizer.save_pretrained(path / "tokenizer")
    torch.manual_seed(3)
    config = StudentConfig(
        hidden_size=32, encoder=EncoderConfig(layers=1, heads=2, window=8), blocks=1, cell=CellConfig(units=32)
    )
    student = Student(config, len(tokenizer), len(tokenizer) + 3)
    torch.nn.init.normal_(student.norm.weight)  # else a tied table repeats its input
    with torch.no_grad():
        student.head_bias[[tokenizer.convert_tokens_to_ids(t) for t in ("<|im_end|>", "<|endoftext|>")]] = -30
    save_model(path / "model", student, path / "tokenizer", {})
    return path / "model"
