"""Who goes to which split: by text and seed only, never in both, duplicates counted."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.errors import UserError
from shards.job import silent
from teacher_dump.corpus.records import ChatRecord, Message, TextRecord
from teacher_dump.corpus.split import Split, Survey, assign, document_key, survey


def text(value: str) -> TextRecord:
    return TextRecord("", "", value)


def survey_of(values: list[str]) -> Survey:
    keys = np.frombuffer(b"".join(document_key(text(v)) for v in values), dtype=np.uint64).reshape(-1, 2)
    return Survey(keys, np.arange(len(values)), Counter(), None)


def chosen(values: list[str], split: Split) -> tuple[set[str], set[str]]:
    return {values[i] for i in split.train}, {values[i] for i in split.val}


WORDS = [f"document {i}" for i in range(100)]


def test_texts_that_differ_in_case_space_or_composition_are_one_document() -> None:
    assert document_key(text("Café  au\nlait ")) == document_key(text("cafe\u0301 AU lait"))
    assert document_key(text("straße")) == document_key(text("STRASSE"))
    assert document_key(text("cafe au lait")) != document_key(text("café au lait"))
    assert len(document_key(text("x"))) == 16


def test_the_same_words_in_other_turns_are_another_conversation() -> None:
    def key(*contents: str) -> bytes:
        return document_key(ChatRecord("", "", tuple(Message("user", c) for c in contents)))

    assert key("a b", "c") != key("a", "b c")
    assert key("A", "b") == key("a ", " B")


def test_sizes_are_met_exactly_where_the_corpus_is_large_enough() -> None:
    split = assign(survey_of(WORDS), train_size=60, val_size=25, seed=0)
    train, val = chosen(WORDS, split)
    assert (len(split.train), len(split.val), len(train), len(val)) == (60, 25, 60, 25)
    assert not train & val
    assert not split.shrunk


def test_a_small_corpus_is_shared_out_in_proportion() -> None:
    split = assign(survey_of(WORDS[:55]), train_size=20_000, val_size=2_000, seed=0)
    assert (len(split.train), len(split.val), split.shrunk) == (50, 5, True)
    split = assign(survey_of(WORDS[:2]), train_size=20_000, val_size=2_000, seed=0)
    assert (len(split.train), len(split.val)) == (1, 1)
    split = assign(survey_of(WORDS[:5]), train_size=1, val_size=100, seed=0)
    assert (len(split.train), len(split.val)) == (1, 4)
    split = assign(survey_of(WORDS[:7]), train_size=20_000, val_size=0, seed=0)
    assert (len(split.train), len(split.val)) == (7, 0)


def test_too_small_a_corpus_is_refused_with_its_size_and_the_remedy() -> None:
    found = survey_of(["Same", "same ", " SAME"])
    found.dropped["empty"] = 4
    with pytest.raises(UserError) as caught:
        assign(found, train_size=20, val_size=5, seed=0)
    for words in ("1 usable sample ", "4 empty", "2 duplicate", "at least 2", "prepare.val_size=0"):
        assert words in str(caught.value)
    assert len(assign(found, train_size=20, val_size=0, seed=0).train) == 1


@given(
    st.lists(st.sampled_from(["a", "A ", "b", "c", "C", "d", "e", "f", "g"]), min_size=9),
    st.integers(1, 12),
    st.integers(0, 12),
    st.integers(-3, 2**63),
)
def test_no_document_is_in_both_splits_and_none_comes_twice(
    values: list[str], train_size: int, val_size: int, seed: int
) -> None:
    distinct = {v.strip().lower() for v in values}
    if len(distinct) < 2:
        return
    split = assign(survey_of(values), train_size, val_size, seed)
    picked = [values[i].strip().lower() for i in [*split.train, *split.val]]
    assert len(picked) == len(set(picked)) == min(len(distinct), train_size + val_size)
    assert split.duplicates == len(values) - len(distinct)
    assert len(split.train) >= 1
    assert (len(split.val) >= 1) == (val_size >= 1)
    first = {v.strip().lower(): i for i, v in reversed(list(enumerate(values)))}
    assert {values[i].strip().lower(): i for i in [*split.train, *split.val]}.items() <= first.items()


def test_the_split_depends_on_seed_and_texts_but_not_on_their_order() -> None:
    def parts(values: list[str], seed: int) -> tuple[set[str], set[str]]:
        return chosen(values, assign(survey_of(values), 50, 20, seed))

    assert parts(WORDS, 7) == parts(WORDS[::-1], 7)
    assert parts(WORDS, 7) != parts(WORDS, 8)


def test_growing_the_training_size_moves_no_held_out_sample() -> None:
    small = assign(survey_of(WORDS), 30, 20, 3)
    large = assign(survey_of(WORDS), 70, 20, 3)
    assert small.val.tolist() == large.val.tolist()
    assert small.train.tolist() == large.train[:30].tolist()


def test_the_shuffle_is_no_function_of_position() -> None:
    """Half of a corpus of two files comes from each, within five standard deviations."""
    values = [f"text {i}" for i in range(4_000)]
    split = assign(survey_of(values), 2_000, 0, 0)
    assert abs(int((split.train < 2_000).sum()) - 1_000) < 5 * np.sqrt(4_000) / 4
    assert not np.array_equal(np.sort(split.train), split.train)


def test_the_survey_counts_what_cannot_be_used(tmp_path: Path) -> None:
    values = [{"text": "a"}, {"text": " \n"}, {"prompt": "q", "response": ""}, ["hello"], [], ["q", "a"], {"text": "b"}]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(v) + "\n" for v in values))
    found = survey([path, path], silent)
    assert found.ordinals.tolist() == [0, 5, 6, 7, 12, 13]
    assert found.dropped == {"empty": 2, "no_response": 6}
    assert found.first_chat == f"{path}:6"
    assert assign(found, 2, 1, 0).duplicates == 3


def test_a_file_of_white_space_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "blank.txt").write_text(" \n\n---\n")
    with pytest.raises(UserError, match=r"blank\.txt: the file holds no record"):
        survey([tmp_path / "blank.txt"], silent)
