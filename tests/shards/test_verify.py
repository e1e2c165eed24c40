"""verify catches damage to files and lies in the content, and says where and what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shards import Capture, Row, verify
from shards.manifest import load_manifest, save_manifest


@pytest.fixture
def folder(build, tmp_path):
    header = build.make_header(11)
    return build.write_dataset(tmp_path, header, [build.make_row(i, header) for i in range(11)])


def test_a_sound_dataset_passes_every_check(folder):
    report = verify(folder)
    assert report.ok
    assert {name: outcome for name, outcome in report.checks.items() if outcome != "ok"} == {
        "off-by-one": report.checks["off-by-one"]
    }
    assert report.to_json() == json.loads(json.dumps(report.to_json()))
    assert any(line.startswith("mass") and line.endswith("ok") for line in report.lines())


def test_every_flipped_bit_of_any_file_is_caught(folder):
    rng = np.random.default_rng(0)
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        for bit in rng.integers(0, 8 * len(whole), 40):
            flipped = bytearray(whole)
            flipped[bit // 8] ^= 1 << (bit % 8)
            path.write_bytes(flipped)
            problems = verify(folder).problems
            assert len(problems) == 1, (path.name, bit)
            assert path.name in problems[0]
            assert "; " in problems[0], "no remedy"
        path.write_bytes(whole)
    assert verify(folder).ok


def test_truncation_anywhere_is_caught(folder):
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        for size in np.linspace(0, len(whole) - 1, 40).astype(int):
            path.write_bytes(whole[:size])
            problems = verify(folder, deep=False).problems
            assert [path.name in problem for problem in problems] == [True], (path.name, size)
        path.write_bytes(whole)


def test_missing_and_swapped_shards_are_named(folder):
    first, second = folder / "shard-00000.arrow", folder / "shard-00001.arrow"
    first.replace(folder / "aside")
    assert ["shard-00000.arrow: missing" in p for p in verify(folder).problems] == [True]
    second.replace(first)
    (folder / "aside").replace(second)
    problems = verify(folder).problems
    assert [p.split(":")[0] for p in problems] == ["shard-00000.arrow", "shard-00001.arrow"]
    assert all("in the manifest; delete this file and run the stage" in p for p in problems)


def test_a_stale_manifest_with_true_hashes_is_caught(folder):
    manifest = load_manifest(folder)
    save_manifest(folder, replace(manifest, shards=manifest.shards[:2]))
    report = verify(folder)
    assert ["lists 10 rows of 11" in problem for problem in report.problems] == [True]
    assert "shard-00002.arrow: not listed" in report.warnings[0]
    wrong = replace(manifest.shards[0], scored=manifest.shards[0].scored + 1)
    save_manifest(folder, replace(manifest, shards=(wrong, *manifest.shards[1:])))
    assert ["(rows, tokens, scored) are (5," in problem for problem in verify(folder).problems] == [True]


def test_an_unfinished_dataset_is_a_problem_but_its_shards_are_checked(folder):
    manifest = load_manifest(folder)
    save_manifest(folder, replace(manifest, shards=manifest.shards[1:], complete=False))
    report = verify(folder)
    assert ["not complete (6 of 11 rows)" in problem for problem in report.problems] == [True]
    assert report.checks["mass"] == "ok"


def test_no_manifest_at_all_is_one_problem(tmp_path):
    report = verify(tmp_path)
    assert ["not a dataset" in problem for problem in report.problems] == [True]


def changed(row: Row, name: str, index: Any, value: Any) -> Row:
    """A copy of `row` with one entry of one column replaced."""
    owner = row.capture if hasattr(row.capture, name) else row
    array = getattr(owner, name).copy()
    array[index] = value
    if isinstance(owner, Capture):
        return replace(row, capture=replace(owner, **{name: array}))
    return replace(row, **{name: array})


def swap_head(row: Row) -> Row:
    c = row.capture
    ids, logprobs = c.head_ids.copy(), c.head_logprobs.copy()
    ids[:2], logprobs[:2] = ids[1::-1], logprobs[1::-1]
    return replace(row, capture=replace(c, head_ids=ids, head_logprobs=logprobs))


def shift_labels(row: Row) -> Row:
    """Label columns of the position after, as a loop that is off by one would write them."""
    c = row.capture
    return replace(
        row, capture=replace(c, label_logprob=np.roll(c.label_logprob, -1), label_rank=np.roll(c.label_rank, -1))
    )


LIES: dict[str, tuple[Callable[[Row], Row], str, str]] = {
    "token outside": (lambda r: changed(r, "input_ids", 3, 50), "rows", "input_ids has ids outside 0 to 49 (50)"),
    "scored before segment": (
        lambda r: replace(r, segment_starts=np.append(r.segment_starts[:1], r.scored_positions()[-1] + 1).astype("i4"),
                          document_ids=None, continued=None),
        "rows", "a position before a segment start is scored"),
    "segments fall": (lambda r: changed(r, "segment_starts", 0, 1), "rows", "segment_starts does not rise from 0"),
    "label in a run": (
        lambda r: replace(r, prompt_runs=np.array([[0, r.num_tokens]], np.int32)),
        "rows", "the label is a prompt token"),
    "run outside": (
        lambda r: replace(r, prompt_runs=np.array([[2, 99]], np.int32)), "rows", "prompt_runs are not rising"),
    "segment count": (lambda r: replace(r, document_ids=np.zeros(9, np.int64)), "shapes", "document_ids has another"),
    "negative bytes": (lambda r: replace(r, scored_bytes=-1), "rows", "scored_bytes is negative (-1)"),
    "head id outside": (lambda r: changed(r, "head_ids", 0, -1), "heads", "head_ids has ids outside 0 to 49"),
    "head repeats": (lambda r: changed(r, "head_ids", 1, r.capture.head_ids[0]), "heads", "head_ids repeat an id"),
    "head order": (swap_head, "heads", "head_logprobs rise inside the head"),
    "head missing mass": (
        lambda r: changed(r, "rest_mass", (0, 0), r.capture.rest_mass[0, 0] + 0.01), "mass", "do not sum to 1"),
    "rest NaN": (lambda r: changed(r, "rest_mass", (1, 0), np.nan), "mass", "rest_mass is not a number from 0 to 1"),
    "rest negative": (lambda r: changed(r, "rest_mass", (1, 1), -0.5), "mass", "rest_mass is not a number from 0 to 1"),
    "logprob positive": (lambda r: changed(r, "head_logprobs", 0, 0.5), "mass", "head_logprobs is not a number"),
    "logprob infinite": (lambda r: changed(r, "head_logprobs", 0, -np.inf), "mass", "head_logprobs is not a number"),
    "hot rest": (lambda r: changed(r, "rest_mass", (0, 1), 0.0), "mass", "rest_mass at T = 2.0 is on the wrong side"),
    "entropy NaN": (lambda r: changed(r, "entropy", 0, np.nan), "mass", "entropy is not a number from 0 to 3.9"),
    "entropy low": (lambda r: changed(r, "entropy", 0, 0.0), "mass", "entropy is below the head's own part"),
    "tail in head": (
        lambda r: changed(r, "tail_ids", 0, min(r.capture.head_ids[: r.capture.head_lengths[0]])),
        "tails", "a tail id is in the head as well"),
    "tail order": (lambda r: changed(r, "tail_ids", 0, 49), "tails", "tail_ids do not rise"),
    "tail id outside": (lambda r: changed(r, "tail_ids", -1, 77), "tails", "tail_ids has ids outside 0 to 49"),
    "count zero": (lambda r: changed(r, "tail_counts", 0, 0), "tails", "a tail count is 0"),
    "draws lost": (
        lambda r: changed(r, "tail_counts", 0, r.capture.tail_counts[0] + 3), "tails", "the number of draws does not"),
    "labels shifted": (shift_labels, "labels", "label_logprob is not the label's log-prob in the head"),
    "tokens shifted": (
        lambda r: replace(r, input_ids=np.roll(r.input_ids, 1)), "labels", "label_logprob is not the label's log-prob"),
    "rank outside": (lambda r: changed(r, "label_rank", 0, 50), "labels", "label_rank is not below the vocabulary"),
}  # fmt: skip


def lying_row(build, header) -> Row:
    """A row in which every lie of `LIES` can be told: one segment, all scored, labels often in the head."""
    rng = np.random.default_rng(5)
    T = 30
    row = Row(
        row_id=7,
        input_ids=rng.integers(0, header.vocab_size, T).astype(np.int32),
        segment_starts=np.zeros(1, np.int32),
        prompt_runs=np.empty((0, 2), np.int32),
        scored=np.ones(T - 1, np.bool_),
        document_ids=np.zeros(1, np.int64),
        continued=np.zeros(1, np.bool_),
        scored_bytes=29,
    )
    logits = rng.normal(0, 1.5, (T - 1, header.vocab_size))
    logits[np.arange(T - 1), row.labels()] += 3
    return build.with_capture(row, logits, header, rng)


@pytest.mark.parametrize("name", LIES)
def test_a_lie_in_the_content_is_found_where_it_is(build, tmp_path, name):
    tell, check, text = LIES[name]
    header = build.make_header(11)
    rows = [build.make_row(i, header) for i in range(11)]
    rows[7] = lying_row(build, header)
    assert verify(build.write_dataset(tmp_path / "sound", header, rows)).ok
    rows[7] = tell(rows[7])
    report = verify(build.write_dataset(tmp_path / "lie", header, rows))
    matching = [problem for problem in report.problems if text in problem]
    assert matching, report.problems
    assert matching[0].startswith("shard-00001.arrow: row 7")
    assert "move the dataset away and run the stage" in matching[0]
    assert report.checks[check].startswith("failed: ")
    assert not [problem for problem in report.problems if "row 7" not in problem and "more places" not in problem]


def test_a_lie_about_a_row_id_is_found(build, tmp_path, monkeypatch):
    header = build.make_header(3, kind="rows")
    rows = [build.make_row(i, header) for i in range(3)]
    monkeypatch.setattr("shards.columns._SCALARS", {**_scalars(), "row_id": lambda row: row.row_id + 1})
    build.write_dataset(tmp_path, header, rows)
    assert "row 0: row_id is not the row's index (1)" in verify(tmp_path).problems[0]


def _scalars() -> dict[str, Any]:
    from shards.columns import _SCALARS

    return _SCALARS


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"head_size": 5}, "the head has not 1 to 5 ids"),
        ({"head_mass": 1.0}, "the head has not 6 to 6 ids"),
        ({"head_mass": 0.5}, "the head is not the shortest prefix with mass 0.5"),
        ({"must_keep": (48,)}, "must-keep id 48 is not in the head"),
        ({"tail": {"draws": 3}}, "the number of draws does not follow {'draws': 3}"),
        ({"vocab_size": 49}, "outside 0 to 48"),
        ({"max_length": 10}, "the row has not 1 to 10 tokens"),
    ],
)
def test_content_that_does_not_keep_the_headers_rules_is_found(build, tmp_path, changes, text):
    written = build.make_header(11)
    rows = [build.make_row(i, written) for i in range(11)]
    build.write_dataset(tmp_path, replace(written, **changes), rows)
    assert any(text in problem for problem in verify(tmp_path).problems)


def test_a_flood_of_findings_is_counted_not_printed(build, tmp_path):
    header = build.make_header(11, head_size=5)
    build.write_dataset(tmp_path, header, [build.make_row(i, build.make_header(11)) for i in range(11)])
    problems = [p for p in verify(tmp_path).problems if "the head has not 1 to 5 ids" in p]
    assert len(problems) == 3 * (3 + 1)
    assert sum("more places where" in p for p in problems) == 3


def shifted(build, header, row_id: int, shift: int) -> Row:
    """A row with predictable text whose stored distributions predict the token `shift` after the label.

    The label columns are computed from those distributions, so nothing but the text betrays the shift.
    """
    row = build.make_row(row_id, replace(header, kind="rows"), length=64)
    rng = np.random.default_rng(row_id)
    logits = rng.normal(0, 1.0, (row.num_scored, header.vocab_size))
    target = np.clip(row.scored_positions() + 1 + shift, 0, row.num_tokens - 1)
    logits[np.arange(row.num_scored), row.input_ids[target]] += rng.normal(3, 1.5, row.num_scored)
    return build.with_capture(row, logits, header, rng)


@pytest.mark.parametrize(
    ("shift", "settings", "outcome", "text"),
    [
        (0, {}, "ok", "i + 1"),
        (1, {}, "failed", "position i predicts token i + 2 better than its label"),
        (-1, {}, "failed", "position i predicts token i better than its label"),
        (1, {"head_size": 0, "tail": {"draws": 20}}, "failed", "predicts token i + 2"),
        (9, {}, "inconclusive", "labels do not beat chance, as with random weights"),
    ],
)
def test_the_off_by_one_probe_reads_the_alignment_from_the_text(build, tmp_path, shift, settings, outcome, text):
    header = build.make_header(80, **settings)
    build.write_dataset(tmp_path, header, [shifted(build, header, i, shift) for i in range(80)], rows_per_shard=40)
    report = verify(tmp_path)
    assert report.checks["off-by-one"].startswith(outcome)
    assert text in report.checks["off-by-one"]
    if outcome == "failed":
        assert len(report.problems) == 1
        assert "discard this dump" in report.problems[0]
    else:
        assert report.problems == []


def test_a_teacher_that_only_repeats_its_input_is_not_called_shifted(build, tmp_path):
    header = build.make_header(80)
    rows = []
    for row_id in range(80):
        row = build.make_row(row_id, replace(header, kind="rows"), length=64)
        rng = np.random.default_rng(row_id)
        logits = rng.normal(0, 0.2, (row.num_scored, header.vocab_size))
        logits[np.arange(row.num_scored), row.input_ids[row.scored_positions()]] += 1.5
        rows.append(build.with_capture(row, logits, header, rng))
    report = verify(build.write_dataset(tmp_path, header, rows, rows_per_shard=40))
    assert "only repeats what it read" in report.checks["off-by-one"]
    assert report.problems == []


def test_a_short_dataset_leaves_the_probe_silent_with_a_warning(folder):
    report = verify(folder)
    assert report.checks["off-by-one"].endswith("usable positions, 2000 needed")
    assert len(report.warnings) == 1


def test_a_shallow_verify_still_catches_damage(folder: Path):
    path = folder / "shard-00000.arrow"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    report = verify(folder, deep=False)
    assert not report.ok
    assert set(report.checks) == {"manifest", "files"}
