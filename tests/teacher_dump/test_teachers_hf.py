"""The transformers backend on tiny random models: what a segment gets is what it would get alone."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from shards.errors import UserError
from shards.job import silent
from shards.rows import Capture, Row
from teacher_dump.config import DumpConfig, HFTeacher, TailDraws
from teacher_dump.extraction import ExtractionSpec
from teacher_dump.philox import key_of
from teacher_dump.teachers import build
from teacher_dump.teachers.base import NotFiniteError
from teacher_dump.teachers.hf import TransformersTeacher
from tests.tiny_teacher import make_tiny_teacher

VOCAB = 384
KEY = key_of("corpus", 0)


@pytest.fixture(scope="module", params=["llama", "qwen3-tied"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    architecture, _, tied = request.param.partition("-")
    return make_tiny_teacher(tmp_path_factory.mktemp("teacher"), architecture=architecture, tied=bool(tied))


def load(folder: Path, events: list[Any] | None = None, **dump: Any) -> TransformersTeacher:
    settings = {"head_size": 6, "tail": TailDraws(draws=4), "tail_logprobs": True} | dump
    spec = ExtractionSpec.of(DumpConfig(**settings), VOCAB)
    emit = events.append if events is not None else silent
    teacher = build(HFTeacher(model=str(folder)), spec, batch_tokens=64, emit=emit)
    assert isinstance(teacher, TransformersTeacher)
    return teacher


def packed_row(row_id: int, lengths: list[int], seed: int, scored: str = "all") -> Row:
    """Random tokens in segments; all labels, or only the second half of each segment's, are scored."""
    generator = np.random.default_rng(seed)
    tokens = generator.integers(3, VOCAB, sum(lengths)).astype(np.int32)
    starts = np.cumsum([0, *lengths[:-1]]).astype(np.int32)
    flags = np.ones(len(tokens) - 1, dtype=np.bool_)
    flags[starts[1:] - 1] = False
    if scored == "half":
        for start, length in zip(starts, lengths, strict=True):
            flags[start : start + length // 2] = False
    return Row(row_id, tokens, starts, np.zeros((0, 2), np.int32), flags)


@pytest.fixture
def rows() -> list[Row]:
    """1, 2, 20 and 1 segments; the last row has no scored position."""
    silent = packed_row(3, [5], 14)
    return [
        packed_row(0, [40], 11),
        packed_row(1, [17, 30], 12, "half"),
        packed_row(2, [2, 3, 9, 1, 6] * 4, 13),
        dataclasses.replace(silent, scored=np.zeros_like(silent.scored)),
    ]


def same(a: Capture, b: Capture) -> bool:
    return all(np.array_equal(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(Capture))


def test_every_scored_position_agrees_with_the_whole_model_on_its_segment_alone(folder: Path, rows: list[Row]) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    teacher = load(folder)
    for row, capture in zip(rows, teacher.score(rows, KEY), strict=True):
        assert capture.num_positions == row.num_scored
        heads = np.split(capture.head_ids, np.cumsum(capture.head_lengths)[:-1]) if row.num_scored else []
        for n, position in enumerate(row.scored_positions()):
            start = row.segment_starts[row.segment_starts <= position].max()
            with torch.inference_mode():
                logits = model(torch.from_numpy(row.input_ids[start : position + 1]).long()[None]).logits[0, -1]
            logprobs = logits[:VOCAB].double().log_softmax(-1)
            label = int(row.input_ids[position + 1])
            assert capture.label_logprob[n] == pytest.approx(float(logprobs[label]), abs=1e-4)
            assert capture.label_rank[n] == int((logprobs > logprobs[label]).sum())
            assert capture.entropy[n] == pytest.approx(float(-(logprobs.exp() * logprobs).sum()), abs=1e-4)
            assert heads[n].tolist() == logprobs.topk(len(heads[n])).indices.tolist()
            assert capture.rest_mass[n, 0] == pytest.approx(
                1.0 - float(logprobs[torch.from_numpy(heads[n]).long()].exp().sum()), abs=1e-5
            )
    dead = torch.sigmoid(logits[VOCAB:].double().logsumexp(0) - logits[:VOCAB].double().logsumexp(0))
    assert 0 < float(dead) < 1


def test_another_segment_s_tokens_change_nothing(folder: Path, rows: list[Row]) -> None:
    teacher = load(folder)
    before = teacher.score(rows, KEY)[1]
    tokens = rows[1].input_ids.copy()
    tokens[:17] = (tokens[:17] + 91) % VOCAB
    after = teacher.score([rows[0], dataclasses.replace(rows[1], input_ids=tokens), *rows[2:]], KEY)[1]
    first = int(rows[1].scored[:17].sum())
    assert first > 3
    np.testing.assert_array_equal(after.label_logprob[first:], before.label_logprob[first:])
    np.testing.assert_array_equal(after.entropy[first:], before.entropy[first:])
    assert (after.label_logprob[:first] != before.label_logprob[:first]).all()


def test_scoring_again_gives_the_same_bytes(folder: Path, rows: list[Row]) -> None:
    teacher = load(folder)
    assert all(same(a, b) for a, b in zip(teacher.score(rows, KEY), teacher.score(rows, KEY), strict=True))


def test_the_batch_decides_no_more_than_the_last_bits(folder: Path, rows: list[Row]) -> None:
    teacher = load(folder)
    for alone, together in zip((teacher.score([row], KEY)[0] for row in rows), teacher.score(rows, KEY), strict=True):
        np.testing.assert_array_equal(alone.head_ids, together.head_ids)
        np.testing.assert_array_equal(alone.tail_ids, together.tail_ids)
        np.testing.assert_allclose(alone.head_logprobs, together.head_logprobs, atol=1e-4)


def test_full_distributions_agree_with_the_captures(folder: Path, rows: list[Row]) -> None:
    teacher = load(folder)
    row = rows[1]
    capture = teacher.score([row], KEY)[0]
    positions = row.scored_positions()
    logprobs = teacher.logprobs(row, positions)
    assert logprobs.shape == (len(positions), VOCAB)
    np.testing.assert_allclose(np.exp(logprobs).sum(axis=1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(logprobs[np.arange(len(positions)), row.labels()], capture.label_logprob, atol=1e-4)


def test_the_fingerprint_knows_weights_and_config_but_not_the_place(folder: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in folder.iterdir():
        (moved / path.name).write_bytes(path.read_bytes())
    assert load(moved).fingerprint() == load(folder).fingerprint()
    other = load(make_tiny_teacher(tmp_path / "other", seed=5)).fingerprint()
    mine = load(folder).fingerprint()
    assert set(mine) == {"config", "revision", "dtype", "backend", "file model.safetensors"}
    assert other["file model.safetensors"] != mine["file model.safetensors"]
    assert mine["dtype"] == "float32"


def test_nan_names_row_and_position(folder: Path, rows: list[Row], monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = load(folder)
    head = teacher._loaded.head

    def poisoned(features: torch.Tensor) -> torch.Tensor:
        logits = head(features).clone()
        logits[rows[0].num_scored + 2, 5] = math.nan
        return logits

    monkeypatch.setattr(teacher, "_loaded", dataclasses.replace(teacher._loaded, head=poisoned))
    with pytest.raises(NotFiniteError) as caught:
        teacher.score(rows, KEY)
    assert (caught.value.row_id, caught.value.position) == (1, rows[1].scored_positions()[2])


def test_out_of_memory_goes_on_with_less_and_says_so(
    folder: Path, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[Any] = []
    teacher = load(folder, events)
    wanted = teacher.score(rows, KEY)
    body = teacher._loaded.body

    def small_card(ids: torch.Tensor) -> torch.Tensor:
        if ids.numel() > 40:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return body(ids)

    monkeypatch.setattr(teacher, "_loaded", dataclasses.replace(teacher._loaded, body=small_card))
    for a, b in zip(teacher.score(rows, KEY), wanted, strict=True):
        np.testing.assert_array_equal(a.head_ids, b.head_ids)
    warnings = [event["text"] for event in events if event["event"] == "warning"]
    assert len(warnings) == 1
    assert warnings[0].startswith("out of GPU memory: going on with 128 positions and 32 tokens")


def test_a_card_that_holds_nothing_is_the_users_to_mend(
    folder: Path, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = load(folder)

    def no_card(ids: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(teacher, "_loaded", dataclasses.replace(teacher._loaded, body=no_card))
    with pytest.raises(UserError, match="single segment at a time"):
        teacher.score(rows, KEY)


def test_a_vocabulary_larger_than_the_model_is_refused(folder: Path) -> None:
    spec = ExtractionSpec.of(DumpConfig(), 5000)
    with pytest.raises(UserError, match="has 400 vocabulary rows, the corpus' tokenizer 5000 tokens"):
        build(HFTeacher(model=str(folder)), spec, batch_tokens=64, emit=silent)


def test_lost_weights_are_refused_not_drawn_at_random(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 1 weights of its architecture \(model\.layers\.1\.mlp\.up_proj"):
        load(tmp_path)


def test_broken_weights_are_refused_in_one_line(folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"not tensors")
    with pytest.raises(UserError, match="could not be loaded") as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("Granite", {"logits_scaling": 7.0}),
        ("Cohere", {"logit_scale": 0.3}),
        ("Gemma2", {"final_logit_softcapping": 3.0}),
    ],
)
def test_families_that_change_logits_after_the_head_are_followed(
    tmp_path: Path, family: str, settings: dict[str, Any]
) -> None:
    import transformers

    shape: dict[str, Any] = {
        "vocab_size": 400, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3, "head_dim": 8,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    if family != "Gemma2":
        shape.pop("head_dim")
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**shape, **settings)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    model.save_pretrained(tmp_path)
    events: list[Any] = []
    teacher = load(tmp_path, events)
    row = packed_row(0, [12], 1)
    with torch.inference_mode():
        logits = model(torch.from_numpy(row.input_ids).long()[None]).logits[0, :-1, :VOCAB]
    np.testing.assert_allclose(
        teacher.logprobs(row, row.scored_positions()), logits.float().log_softmax(-1).numpy(), atol=1e-4
    )
    assert not [event for event in events if event["event"] == "note"], "body and head should do"


def test_a_family_we_do_not_know_falls_back_to_whole_logits(
    folder: Path, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = load(folder).score(rows, KEY)
    monkeypatch.setattr("teacher_dump.teachers.hf_load._head", lambda _model: lambda hidden: hidden @ hidden.T)
    events: list[Any] = []
    teacher = load(folder, events)
    for a, b in zip(teacher.score(rows, KEY), wanted, strict=True):
        np.testing.assert_array_equal(a.head_ids, b.head_ids)
    assert ["whole logits" in event["text"] for event in events if event["event"] == "note"] == [True]
