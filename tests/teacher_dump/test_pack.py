"""Cutting to length and packing: nothing is lost, nothing crosses a segment, and the same input gives the same rows."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from teacher_dump.corpus.pack import assemble, pack
from teacher_dump.corpus.pieces import Piece, cut_chat, cut_document
from teacher_dump.corpus.render import Rendered

documents = st.lists(st.integers(0, 99), min_size=1, max_size=60)


@given(documents, st.integers(8, 20), st.sampled_from([[], [500], [500, 501]]))
def test_a_documents_pieces_hold_every_token_once_behind_the_prefix(
    tokens: list[int], max_length: int, prefix: list[int]
) -> None:
    pieces = cut_document(tokens, prefix, max_length)
    if len(tokens) + len(prefix) < 2:
        assert pieces == []
        return
    own = [p.tokens[len(prefix) :].tolist() for p in pieces]
    assert list(itertools.chain(*own)) == tokens
    assert all(p.tokens[: len(prefix)].tolist() == prefix for p in pieces)
    assert all(2 <= len(p.tokens) <= max_length for p in pieces)
    assert [p.continued for p in pieces] == [i > 0 for i in range(len(pieces))]
    for piece in pieces:
        assert piece.labels.tolist() == [i >= max(len(prefix), 1) for i in range(len(piece.tokens))]
        assert len(piece.runs) == 0


def test_a_single_left_over_token_takes_one_from_the_piece_before() -> None:
    assert [len(p.tokens) for p in cut_document(list(range(17)), [], 8)] == [8, 7, 2]
    assert [len(p.tokens) for p in cut_document(list(range(16)), [], 8)] == [8, 8]
    assert [len(p.tokens) for p in cut_document(list(range(9)), [], 8)] == [7, 2]


TWO_TURNS = Rendered(
    tokens=[10, 11, 12, 20, 21, 13, 14, 22, 23],
    labels=[False, False, False, True, True, False, False, True, True],
    runs=[(0, 3), (5, 7)],
)


def test_a_conversation_is_cut_at_its_end_and_never_inside_its_prompt() -> None:
    whole = cut_chat(TWO_TURNS, 9)
    assert whole is not None
    assert (whole.tokens.tolist(), whole.runs.tolist()) == (TWO_TURNS.tokens, [[0, 3], [5, 7]])
    shorter = cut_chat(TWO_TURNS, 8)
    assert shorter is not None
    assert (shorter.tokens.tolist(), shorter.runs.tolist()) == (TWO_TURNS.tokens[:8], [[0, 3], [5, 7]])
    for length in (5, 6, 7):  # the second answer is gone, so its question goes too
        first = cut_chat(TWO_TURNS, length)
        assert first is not None
        assert (first.tokens.tolist(), first.runs.tolist()) == ([10, 11, 12, 20, 21], [[0, 3]])
        assert first.labels.tolist() == [False, False, False, True, True]
    assert cut_chat(TWO_TURNS, 3) is None


sizes = st.lists(st.tuples(st.integers(2, 16), st.integers(0, 2)), max_size=80)


@given(sizes, st.integers(1, 8))
def test_packing_places_every_piece_once_in_a_row_of_its_source(pieces: list[tuple[int, int]], open_rows: int) -> None:
    arguments = [(i, length, source) for i, (length, source) in enumerate(pieces)]
    rows = list(pack(arguments, 16, open_rows))
    assert sorted(i for row in rows for i in row) == list(range(len(pieces)))
    for row in rows:
        assert sum(pieces[i][0] for i in row) <= 16
        assert len({pieces[i][1] for i in row}) == 1
        assert row == sorted(row)
    assert rows == list(pack(iter(arguments), 16, open_rows))


@given(sizes)
def test_with_enough_open_rows_no_two_rows_of_a_source_are_half_empty(pieces: list[tuple[int, int]]) -> None:
    """First fit's own guarantee: a later row's first piece did not fit into any earlier row."""
    rows = list(pack([(i, length, source) for i, (length, source) in enumerate(pieces)], 16, 1_000))
    for source in range(3):
        filled = [sum(pieces[i][0] for i in row) for row in rows if pieces[row[0]][1] == source]
        assert sum(total <= 8 for total in filled) <= 1


def make_piece(draw: st.DrawFn) -> Piece:
    length = draw(st.integers(2, 9))
    labels = np.array([False, *draw(st.lists(st.booleans(), min_size=length - 1, max_size=length - 1))])
    run = draw(st.integers(0, length - 1))
    return Piece(
        np.array(draw(st.lists(st.integers(0, 9), min_size=length, max_size=length)), dtype=np.int32),
        labels,
        np.array([[0, run]] if run else [], dtype=np.int32).reshape(-1, 2),
        draw(st.booleans()),
    )


@given(st.lists(st.composite(make_piece)(), min_size=1, max_size=6))
def test_a_row_says_of_every_piece_what_the_piece_said(pieces: list[Piece]) -> None:
    lengths = np.arange(100, 110, dtype=np.int32)
    row = assemble(5, pieces, source="s", documents=list(range(len(pieces))), byte_lengths=lengths)
    assert (row.row_id, row.source) == (5, "s")
    assert len(row.scored) == row.num_tokens - 1
    bounds = [*row.segment_starts.tolist(), row.num_tokens]
    seen_runs = []
    for i, piece in enumerate(pieces):
        a, b = bounds[i], bounds[i + 1]
        assert row.input_ids[a:b].tolist() == piece.tokens.tolist()
        assert row.scored[a : b - 1].tolist() == piece.labels[1:].tolist()
        if b < row.num_tokens:
            assert not row.scored[b - 1], "the label of a segment's last position is another segment's token"
        seen_runs += (piece.runs + a).tolist()
    assert row.prompt_runs.tolist() == seen_runs
    assert row.document_ids is not None
    assert row.continued is not None
    assert row.document_ids.tolist() == list(range(len(pieces)))
    assert row.continued.tolist() == [p.continued for p in pieces]
    assert row.scored_bytes == sum(100 + t for t in row.labels().tolist())
    bare = assemble(5, pieces, source="s", documents=[0] * len(pieces), byte_lengths=lengths, with_runs=False)
    assert bare.prompt_runs.shape == (0, 2)
