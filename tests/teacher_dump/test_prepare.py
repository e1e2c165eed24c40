"""The whole stage on small corpora: what lies on disk afterwards, and that nothing does after a mistake."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shards import Row, open_dataset
from shards.errors import UserError
from shards.job import silent
from shards.stage import read_marker
from teacher_dump import prepare
from teacher_dump.config import PrepareJob
from teacher_dump.tokenizers import CorpusTokenizer, load_tokenizer


def make_job(tmp_path: Path, tokenizer: Path, inputs: list[Path], **settings: Any) -> PrepareJob:
    """A job whose teacher is only a config.json: `prepare` never reads weights."""
    teacher = tmp_path / "teacher"
    teacher.mkdir(exist_ok=True)
    (teacher / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 400}))
    return PrepareJob.model_validate(
        {
            "teacher": {"kind": "hf", "model": str(teacher), "tokenizer": str(tokenizer)},
            "prepare": {"input": inputs, "max_length": 32, "train_size": 20, "val_size": 5} | settings,
            "output": tmp_path / "corpus",
            "digest": "1" * 64,
        }
    )


def write_texts(path: Path, count: int = 40) -> Path:
    """Documents of very different lengths, each with words of its own."""
    values = [{"text": " ".join(f"word{i}-{j}" for j in range(1 + i % 7))} for i in range(count)]
    path.write_text("".join(json.dumps(v) + "\n" for v in values))
    return path


def write_chats(path: Path, count: int = 40) -> Path:
    path.write_text(json.dumps([[f"question {i}?", f"answer {i}."] for i in range(count)]))
    return path


def rows(job: PrepareJob, split: str) -> list[Row]:
    return list(open_dataset(job.output / split).rows())


def segments(row: Row) -> list[list[int]]:
    bounds = [*row.segment_starts.tolist(), row.num_tokens]
    return [row.input_ids[a:b].tolist() for a, b in itertools.pairwise(bounds)]


def documents(job: PrepareJob, split: str) -> dict[int, list[int]]:
    """Document id -> its tokens, put together again from its pieces in row order."""
    found: dict[int, list[tuple[bool, list[int]]]] = {}
    for row in rows(job, split):
        assert row.document_ids is not None
        assert row.continued is not None
        for document, continued, tokens in zip(
            row.document_ids.tolist(), row.continued.tolist(), segments(row), strict=True
        ):
            found.setdefault(document, []).append((continued, tokens))
    return {k: [t for _, tokens in sorted(v, key=lambda piece: piece[0]) for t in tokens] for k, v in found.items()}


def test_plain_documents_come_back_from_the_rows_word_for_word(
    tmp_path: Path, tiny: CorpusTokenizer, tiny_tokenizer_folder: Path
) -> None:
    job = make_job(tmp_path, tiny_tokenizer_folder, [write_texts(tmp_path / "a.jsonl")], max_length=64)
    prepare.run(job, silent)
    texts = [json.loads(line)["text"] for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    train, val = documents(job, "train"), documents(job, "val")
    assert (len(train), len(val)) == (20, 5)
    assert not set(train) & set(val)
    for document, tokens in (train | val).items():
        assert tokens[-1] == tiny.separator
        assert tiny.hf.decode(tokens[:-1]) == texts[document]


def test_every_position_inside_a_plain_segment_is_scored_and_no_other(
    tmp_path: Path, tiny: CorpusTokenizer, tiny_tokenizer_folder: Path
) -> None:
    job = make_job(tmp_path, tiny_tokenizer_folder, [write_texts(tmp_path / "a.jsonl")])
    prepare.run(job, silent)
    for row in rows(job, "train"):
        assert row.num_tokens <= 32
        next_starts_a_segment = np.isin(np.arange(1, row.num_tokens), row.segment_starts)
        assert row.scored.tolist() == (~next_starts_a_segment).tolist()
        assert len(row.prompt_runs) == 0
        labels = [t for tokens in segments(row) for t in tokens[1:] if t != tiny.separator]
        assert row.scored_bytes == len(tiny.hf.decode(labels).encode())


def test_chat_rows_score_answers_only_and_know_their_prompts(
    tmp_path: Path, tiny: CorpusTokenizer, tiny_tokenizer_folder: Path
) -> None:
    job = make_job(tmp_path, tiny_tokenizer_folder, [write_chats(tmp_path / "a.json")], max_length=200)
    prepare.run(job, silent)
    seen = 0
    for row in rows(job, "train"):
        assert row.document_ids is not None
        scored_text = tiny.hf.decode(row.labels().tolist())
        assert scored_text == "".join(f"answer {i}.<|im_end|>" for i in row.document_ids)
        prompts = [tiny.hf.decode(row.input_ids[a:b].tolist()) for a, b in row.prompt_runs.tolist()]
        assert prompts == [
            f"<|im_start|>user\nquestion {i}?<|im_end|>\n<|im_start|>assistant\n" for i in row.document_ids
        ]
        seen += len(prompts)
    assert seen == 20


def test_prompt_runs_can_be_left_out(tmp_path: Path, tiny_tokenizer_folder: Path) -> None:
    inputs = [write_chats(tmp_path / "a.json")]
    job = make_job(tmp_path, tiny_tokenizer_folder, inputs, max_length=200, prompt_runs=False)
    prepare.run(job, silent)
    assert all(len(row.prompt_runs) == 0 for row in rows(job, "train"))


def test_a_row_holds_one_source(tmp_path: Path, tiny_tokenizer_folder: Path) -> None:
    inputs = [write_texts(tmp_path / "texts.jsonl"), write_chats(tmp_path / "chats.json")]
    job = make_job(tmp_path, tiny_tokenizer_folder, inputs, max_length=200, train_size=60, val_size=10)
    prepare.run(job, silent)
    for row in rows(job, "train"):
        assert row.document_ids is not None
        assert {"texts" if d < 40 else "chats" for d in row.document_ids} == {row.source}
    sources = open_dataset(job.output / "train").header.extra["sources"]
    assert sum(sources.values()) == 60
    assert set(sources) == {"texts", "chats"}


def test_header_and_summary_state_vocabulary_fingerprints_and_counts(
    tmp_path: Path, tiny: CorpusTokenizer, tiny_tokenizer_folder: Path
) -> None:
    path = write_chats(tmp_path / "a.json", count=30)
    values = json.loads(path.read_text())
    long = ["why " * 40, "no room for this answer"]
    path.write_text(json.dumps([*values, values[0], long, ["only a prompt"], ["", ""]]))
    job = make_job(tmp_path, tiny_tokenizer_folder, [path], max_length=80, train_size=31, val_size=0)
    prepare.run(job, silent)
    dataset = open_dataset(job.output / "train")
    header = dataset.header
    assert (header.kind, header.vocab_size, header.vocab_rows, header.max_length) == ("rows", 384, 400, 80)
    assert header.fingerprints["tokenizer"] == tiny.fingerprint
    assert header.fingerprints["chat_template"] == tiny.template_fingerprint
    assert header.extra["dropped"] == {"truncated_to_no_response": 1}
    assert (header.extra["split"], header.extra["samples"]) == ("train", 30)
    assert header.extra["tokens"] == dataset.num_tokens == sum(r.num_tokens for r in dataset.rows())
    marker = read_marker(job.output)
    assert marker is not None
    assert marker.done
    assert marker.summary["dropped"] == {"duplicate": 1, "no_response": 2, "truncated_to_no_response": 1}
    assert marker.summary["train"]["scored"] == dataset.num_scored
    assert marker.summary["val"]["rows"] == len(open_dataset(job.output / "val")) == 0
    assert load_tokenizer(str(job.output / "tokenizer"), silent).fingerprint == tiny.fingerprint


def test_the_token_cap_holds_for_training_only(tmp_path: Path, tiny_tokenizer_folder: Path) -> None:
    inputs = [write_texts(tmp_path / "a.jsonl")]
    job = make_job(tmp_path, tiny_tokenizer_folder, inputs, max_tokens=200)
    prepare.run(job, silent)
    capped = sum(r.num_tokens for r in rows(job, "train"))
    assert 200 - 32 < capped <= 200
    assert len(documents(job, "val")) == 5


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != ".lock"
    }


def test_the_same_job_gives_the_same_bytes_and_another_seed_another_split(
    tmp_path: Path, tiny_tokenizer_folder: Path
) -> None:
    inputs = [write_texts(tmp_path / "a.jsonl"), write_chats(tmp_path / "b.json")]
    job = make_job(tmp_path, tiny_tokenizer_folder, inputs)
    prepare.run(job, silent)
    again = job.model_copy(update={"output": tmp_path / "again"})
    prepare.run(again, silent)
    assert content(job.output) == content(again.output)
    other = make_job(tmp_path, tiny_tokenizer_folder, inputs, seed=1).model_copy(update={"output": tmp_path / "other"})
    prepare.run(other, silent)
    assert set(documents(other, "val")) != set(documents(job, "val"))

    def fingerprint(job: PrepareJob, split: str) -> Any:
        return open_dataset(job.output / split).header.fingerprints["corpus"]

    assert len({fingerprint(j, s) for j in (job, other) for s in ("train", "val")}) == 4


def test_a_finished_folder_is_left_alone_and_an_unfinished_one_begun_anew(
    tmp_path: Path, tiny_tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(tmp_path, tiny_tokenizer_folder, [write_texts(tmp_path / "a.jsonl")])
    with monkeypatch.context() as patch:
        patch.setattr(prepare._Writer, "_fingerprint", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare.run(job, silent)
    assert not list(job.output.rglob("*.tmp"))
    marker = read_marker(job.output)
    assert marker is not None
    assert not marker.done
    (job.output / "train").mkdir()
    (job.output / "train" / "shard-00000.arrow").write_bytes(b"half")
    prepare.run(job, silent)
    before = content(job.output)
    notes: list[str] = []
    prepare.run(job, lambda event: notes.append(str(event.get("text"))))
    assert content(job.output) == before
    assert any("already prepared" in note for note in notes)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"text": "a"}\n' * 6 + "{broken\n", ("a.jsonl:7", "not JSON")),
        ('{"text": "a"}\n', ("1 usable sample",)),
        ("", ("a.jsonl", "empty")),
    ],
)
def test_a_bad_corpus_is_told_before_any_tokenizer_is_loaded_and_leaves_nothing(
    tmp_path: Path, text: str, words: tuple[str, ...]
) -> None:
    (tmp_path / "a.jsonl").write_text(text)
    job = make_job(tmp_path, tmp_path / "no tokenizer here", [tmp_path / "a.jsonl"])
    with pytest.raises(UserError) as caught:
        prepare.run(job, silent)
    for word in words:
        assert word in str(caught.value)
    assert not job.output.exists()


def test_a_small_corpus_is_prepared_with_a_note(tmp_path: Path, tiny_tokenizer_folder: Path) -> None:
    inputs = [write_texts(tmp_path / "a.jsonl", count=22)]
    job = make_job(tmp_path, tiny_tokenizer_folder, inputs, train_size=20_000, val_size=2_000)
    notes: list[str] = []
    prepare.run(job, lambda event: notes.append(str(event.get("text"))))
    assert (len(documents(job, "train")), len(documents(job, "val"))) == (20, 2)
    assert any("22 distinct samples" in note and "20 for training, 2 held out" in note for note in notes)


def test_rows_too_short_for_every_prompt_are_refused(tmp_path: Path, tiny_tokenizer_folder: Path) -> None:
    job = make_job(tmp_path, tiny_tokenizer_folder, [write_chats(tmp_path / "a.json")], max_length=8)
    with pytest.raises(UserError, match=r"prepare\.max_length: nothing is left of the 20 train samples"):
        prepare.run(job, silent)
    assert not list(job.output.rglob("*.arrow"))


def test_a_tokenizer_larger_than_the_teacher_is_refused_with_both_sizes(
    tmp_path: Path, tiny_tokenizer_folder: Path
) -> None:
    job = make_job(tmp_path, tiny_tokenizer_folder, [write_texts(tmp_path / "a.jsonl")])
    (tmp_path / "teacher" / "config.json").write_text(json.dumps({"vocab_size": 64}))
    with pytest.raises(UserError, match=r"has 384 tokens, but the teacher .* only 64"):
        prepare.run(job, silent)


def test_the_real_qwen3_tokenizer_prepares_chats_one_turn_a_sample(
    tmp_path: Path, qwen3: CorpusTokenizer, qwen3_tokenizer_folder: Path
) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([[f"你好 {i}", "你好！", "再见", "再见！"] for i in range(6)]))
    job = make_job(tmp_path, qwen3_tokenizer_folder, [path], max_length=128, train_size=4, val_size=2)
    (tmp_path / "teacher" / "config.json").write_text(json.dumps({"vocab_size": 151_936}))
    prepare.run(job, silent)
    header = open_dataset(job.output / "train").header
    assert (header.vocab_size, header.vocab_rows) == (151_669, 151_936)
    labels = [qwen3.hf.decode(row.labels().tolist()) for row in rows(job, "train")]
    assert "".join(labels).count("你好！<|im_end|>") == 4
    assert "".join(labels).count("再见！<|im_end|>") == 4
    assert sum(len(row.segment_starts) for row in rows(job, "train")) == 8


def run_process(job_file: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "teacher_dump", str(job_file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )


def test_the_process_reports_a_users_mistake_as_one_event_and_exits_with_2(tmp_path: Path) -> None:
    job = make_job(tmp_path, tmp_path, [tmp_path / "nowhere.txt"])
    (tmp_path / "job.json").write_text(job.model_dump_json())
    process = run_process(tmp_path / "job.json")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2, err
    (event,) = map(json.loads, out.splitlines())
    assert (event["event"], event["kind"]) == ("error", "user")
    assert "nowhere.txt: no such file" in event["text"]
    process = run_process(tmp_path / "absent.json")
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "absent.json: no such job file" in out


def test_sigterm_ends_the_process_with_143_and_no_temporary_file(tmp_path: Path, tiny_tokenizer_folder: Path) -> None:
    path = write_texts(tmp_path / "a.jsonl", count=60_000)
    job = make_job(tmp_path, tiny_tokenizer_folder, [path], train_size=50_000)
    (tmp_path / "job.json").write_text(job.model_dump_json())
    process = run_process(tmp_path / "job.json")
    assert process.stdout is not None
    for line in process.stdout:
        if '"tokenising"' in line:
            break
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert "Traceback" not in err
    assert [p.name for p in job.output.iterdir() if p.name != ".lock"] == ["stage.json"]
