"""Every corpus format is read record by record, and every mistake in it is told with its line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from shards.errors import UserError
from teacher_dump.corpus.formats import check_files, read_records
from teacher_dump.corpus.records import ChatRecord, Message, TextRecord

PAIR = (Message("user", "你好"), Message("assistant", "你好！"))


def texts(path: Path) -> list[str]:
    records = list(read_records(path))
    assert all(isinstance(r, TextRecord) for r in records)
    return [r.text for r in records]  # type: ignore[union-attr]


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def lines(*values: object) -> str:
    return "".join(json.dumps(v, ensure_ascii=False) + "\n" for v in values)


def complaint(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        list(read_records(path))
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    return message


def test_jsonl_gives_one_record_a_line_and_skips_blank_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "one"}\n\n{"text": "two\\nlines", "id": 7}\r\n{"text": "last"}')
    records = list(read_records(path))
    assert texts(path) == ["one", "two\nlines", "last"]
    assert [r.place for r in records] == [f"{path}:1", f"{path}:3", f"{path}:4"]
    assert {r.source for r in records} == {"a"}


def test_jsonl_zst_of_several_frames_reads_like_jsonl(tmp_path: Path) -> None:
    compress = zstandard.ZstdCompressor().compress
    half = lines({"text": "one"}).encode()
    path = write(tmp_path / "a.jsonl.zst", compress(half) + compress(lines({"text": "two"}, {"text": "三"}).encode()))
    assert texts(path) == ["one", "two", "三"]
    assert [r.place.rpartition(":")[2] for r in read_records(path)] == ["1", "2", "3"]


def test_a_line_may_be_longer_than_the_reading_buffer(tmp_path: Path) -> None:
    long = "长" * 1_500_000
    path = write(tmp_path / "a.jsonl", lines({"text": "x"}, {"text": long}, {"text": "y"}))
    assert texts(path) == ["x", long, "y"]


def test_txt_documents_lie_between_lines_of_three_hyphens(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "\ufeff\nfirst\n\nstill first\n\n --- \n---\n  \n---\r\nsecond -- not ---\n----\n")
    assert texts(path) == ["first\n\nstill first", "second -- not ---\n----"]
    assert [r.place for r in read_records(path)] == [f"{path}:2", f"{path}:10"]


def test_the_seeds_list_of_utterances_alternates_user_and_assistant(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", '[["你好", "你好！"],\n ["a", "b", "c", "d", "e"]]')
    first, second = read_records(path)
    assert first == ChatRecord(f"{path}:1 (record 1)", "a", PAIR)
    assert isinstance(second, ChatRecord)
    assert second.place == f"{path}:2 (record 2)"
    assert [(m.role, m.content) for m in second.messages] == [
        ("user", "a"),
        ("assistant", "b"),
        ("user", "c"),
        ("assistant", "d"),  # the last utterance has no answer, so nothing in it is a label
    ]


def test_a_json_list_is_read_across_buffer_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = [{"text": f'{i} \\ " 字 \n {"x" * i}'} for i in range(40)]
    path = write(tmp_path / "a.json", json.dumps(values, ensure_ascii=False, indent=2))
    for size in (1, 2, 3, 7, 64, 1000):
        monkeypatch.setattr("teacher_dump.corpus.formats._CHUNK", size)
        assert texts(path) == [v["text"] for v in values]


@pytest.mark.parametrize(
    "value",
    [
        {"prompt": "你好", "response": "你好！"},
        {"prompt": "你好", "completion": "你好！", "score": 3},
        {"instruction": "你好", "input": "", "output": "你好！"},
        {"question": "你好", "answer": "你好！"},
        {"messages": [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "你好！"}]},
        ["你好", "你好！"],
    ],
    ids=["prompt", "completion", "instruction", "question", "messages", "utterances"],
)
def test_prompt_and_response_have_several_spellings(tmp_path: Path, value: object) -> None:
    (record,) = read_records(write(tmp_path / "a.jsonl", lines(value)))
    assert isinstance(record, ChatRecord)
    assert record.messages == PAIR


def test_messages_keep_system_and_reasoning_and_end_with_the_last_answer(tmp_path: Path) -> None:
    value = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a", "reasoning_content": "hm"},
        {"role": "user", "content": "bye"},
        {"role": "assistant", "content": "  "},
    ]
    (record,) = read_records(write(tmp_path / "a.jsonl", lines({"messages": value})))
    assert isinstance(record, ChatRecord)
    assert record.messages == (Message("system", "S"), Message("user", "q"), Message("assistant", "a", "hm"))


TABLE = pa.table(
    {
        "messages": [[{"role": "user", "content": "你好"}, {"role": "assistant", "content": "你好！"}]] * 3,
        "id": [1, 2, 3],
    }
)


def as_parquet(path: Path) -> Path:
    pq.write_table(TABLE, path.with_suffix(".parquet"))
    return path.with_suffix(".parquet")


def as_arrow_file(path: Path) -> Path:
    with pa.ipc.new_file(path.with_suffix(".arrow"), TABLE.schema) as writer:
        writer.write_table(TABLE, max_chunksize=2)
    return path.with_suffix(".arrow")


def as_arrow_stream(path: Path) -> Path:
    with pa.ipc.new_stream(path.with_suffix(".arrow"), TABLE.schema) as writer:
        writer.write_table(TABLE, max_chunksize=2)
    return path.with_suffix(".arrow")


@pytest.mark.parametrize("save", [as_parquet, as_arrow_file, as_arrow_stream])
def test_tables_give_one_record_a_row(tmp_path: Path, save: Callable[[Path], Path]) -> None:
    path = save(tmp_path / "a")
    assert list(read_records(path)) == [ChatRecord(f"{path}: record {i}", "a", PAIR) for i in (1, 2, 3)]


def test_a_null_in_a_table_is_told_with_its_record(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["x", "y", None]}), path)
    assert complaint(path) == f"{path}: record 3: text is null or missing, wanted a string"


GOOD = lines({"text": "good"})


@pytest.mark.parametrize(
    ("name", "content", "where", "words"),
    [
        ("a.jsonl", GOOD * 6 + '{"text": \n' + GOOD, ":7:", ("not JSON", "column 10", "mend or delete")),
        ("a.jsonl", GOOD + '{"txet": "x"}\n', ":2:", ("'txet'", '{"text": ...}')),
        ("a.jsonl", GOOD + '{"text": 5}\n', ":2:", ("text is the number 5", "wanted a string")),
        ("a.jsonl", GOOD + "17\n", ":2:", ("the number 17",)),
        ("a.jsonl", GOOD + '{"prompt": "x"}\n', ":2:", ("'prompt'",)),
        ("a.jsonl", GOOD + '{"prompt": "x", "response": null}\n', ":2:", ("response is null",)),
        ("a.jsonl", GOOD + '["a", {"b": 1}]\n', ":2:", ("utterance 2 is an object",)),
        ("a.jsonl", GOOD + '{"messages": "hi"}\n', ":2:", ("'messages' is the string 'hi'",)),
        ("a.jsonl", GOOD + '{"messages": ["hi"]}\n', ":2:", ("message 1 is the string 'hi'",)),
        ("a.jsonl", GOOD + '{"messages": [{"role": "bot", "content": "x"}]}\n', ":2:", ("role 'bot'", "assistant")),
        ("a.jsonl", GOOD + '{"messages": [{"role": "user"}]}\n', ":2:", ("content of message 1 is null or missing",)),
        ("a.jsonl", GOOD + '{"text": "\\ud83d"}\n', ":2:", ("lone surrogate \\ud83d",)),
        ("a.jsonl", GOOD + "[" * 100_000 + "\n", ":2:", ("JSON",)),
        ("a.jsonl", GOOD.encode() + b'{"text": "caf\xe9"}\n', ":2:", ("not UTF-8", "0xe9", "column 14")),
        ("a.txt", b"one\n---\ncaf\xe9 au lait\n", ":3:", ("not UTF-8", "column 4")),
        ("a.json", b'[["a",\n"\xe9"]]', ":2:", ("not UTF-8", "0xe9")),
        ("a.json", '{"text": "x"}', ":1:", ("an object", "wanted a list")),
        ("a.json", '[["a", "b"],\n ["c", "d"]\n ["e", "f"]]', ":3:", ("not JSON", "found '['")),
        ("a.json", '[["a", "b"],\n ["c" "d"]]', ":2:", ("not JSON", "delimiter")),
        ("a.json", '[["a", "b"],\n', ":2:", ("not JSON",)),
        ("a.json", '[["a", "b"]\n', ":2:", ("ends inside the list",)),
        ("a.json", '[["a", "b"]]\n\n]', ":3:", ("after the end",)),
        ("a.json", '[["a", "b"],\n5]', ":2 (record 2):", ("the number 5",)),
        ("a.jsonl.zst", b"plain text", ":", ("not zstd",)),
        ("a.jsonl.zst", zstandard.ZstdCompressor().compress(GOOD.encode() * 99)[:-3], ":", ("end in the middle",)),
        (
            "a.jsonl.zst",
            zstandard.ZstdCompressor().compress(GOOD.encode() * 2 + b"{"),
            ":3:",
            ("not JSON",),
        ),
        ("a.parquet", b"PAR1 is not enough", ":", ("not a readable Parquet file",)),
        ("a.arrow", b"ARROW1 is not enough", ":", ("not a readable Arrow file",)),
        ("a.arrow", b"neither", ":", ("not a readable Arrow file",)),
    ],
)
def test_a_mistake_is_told_with_its_place(
    tmp_path: Path, name: str, content: str | bytes, where: str, words: tuple[str, ...]
) -> None:
    path = write(tmp_path / name, content)
    message = complaint(path)
    assert message.startswith(f"{path}{where}"), message
    for word in words:
        assert word in message, message


def test_an_error_early_in_a_long_json_list_is_found_without_reading_on(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", '[["a", "b"],\n ["c" "d"],\n' + " " * 5_000_000 + '["e", "f"]]')
    assert complaint(path).startswith(f"{path}:2:")


def test_files_are_checked_before_they_are_read(tmp_path: Path) -> None:
    full = write(tmp_path / "a.jsonl", GOOD)
    check_files([full])
    for paths, words in [
        ([], ("prepare.input", ".jsonl.zst")),
        ([full, tmp_path / "nowhere.txt"], ("nowhere.txt", "no such file")),
        ([full, tmp_path], ("not a file",)),
        ([write(tmp_path / "b.docx", "x")], ("b.docx", "'.docx'", ".parquet")),
        ([write(tmp_path / "empty.json", "")], ("empty.json", "empty")),
    ]:
        with pytest.raises(UserError) as caught:
            check_files(paths)
        for word in words:
            assert word in str(caught.value)
