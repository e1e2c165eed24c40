"""Shards appear whole or not at all, whatever stops the writer, and resuming gives the same bytes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from shards import DatasetWriter, Header, Row, ShardError, UserError, open_dataset, plan_shards, verify
from shards.errors import from_os_error
from shards.files import folder_lock

EVENTS = {"open", "os.rename", "os.remove", "os.mkdir"}


def dump(build, folder: Path, header: Header, before_row: Callable[[int], object] = id) -> None:
    """Write or resume a dataset with three rows a shard."""

    def rows(first: int, count: int) -> Iterator:
        for row_id in range(first, first + count):
            before_row(row_id)
            yield ready[row_id]

    ready = _prepared(build, header.num_rows)
    writer = DatasetWriter(folder, header, plan_shards(header.num_rows, 3), rows_per_batch=2)
    for plan in writer.missing():
        writer.write(plan, rows(plan.first_row, plan.num_rows))
    writer.close()


@cache
def _prepared(build, num_rows: int) -> list[Row]:
    header = build.make_header(num_rows)
    return [build.make_row(row_id, header, length=20) for row_id in range(num_rows)]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def killed_at(moment: int, body: Callable[[Callable[[int], None]], None]) -> bool:
    """Run `body` in a child that SIGKILLs itself before its `moment`-th file operation or row; False: it finished."""
    child = os.fork()
    if child == 0:
        left = moment

        def tick(*_: object) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(lambda event, _: tick() if event in EVENTS else None)
        try:
            body(tick)
            os._exit(0)
        finally:
            os._exit(3)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL)
    return code != 0


def test_a_dump_killed_before_any_file_operation_or_row_resumes_to_the_same_bytes(build, tmp_path):
    header = build.make_header(4)
    dump(build, tmp_path / "whole", header)
    expected = content(tmp_path / "whole")
    assert sorted(expected) == ["dataset.json", "shard-00000.arrow", "shard-00001.arrow"]
    moment = 0
    while True:
        folder = tmp_path / "killed"
        if not killed_at(moment, lambda tick, folder=folder: dump(build, folder, header, tick)):
            break
        dump(build, folder, header)
        assert content(folder) == expected, f"killed before event {moment}"
        shutil.rmtree(folder)
        moment += 1
    assert moment > 25


def test_two_kills_in_a_row_cost_nothing_but_the_open_shard(build, tmp_path):
    header = build.make_header(7)
    assert killed_at(20, lambda tick: dump(build, tmp_path, header, tick))
    sealed = content(tmp_path)["shard-00000.arrow"]
    assert killed_at(8, lambda tick: dump(build, tmp_path, header, tick))
    asked: list[int] = []
    dump(build, tmp_path, header, asked.append)
    assert asked == [3, 4, 5, 6]
    assert content(tmp_path)["shard-00000.arrow"] == sealed
    assert verify(tmp_path).ok


def test_a_writer_error_leaves_no_shard_and_is_passed_on(build, tmp_path):
    header = build.make_header(7)

    def fail(row_id: int) -> None:
        if row_id == 5:
            raise RuntimeError("the teacher fell over")

    with pytest.raises(RuntimeError, match="the teacher fell over"):
        dump(build, tmp_path, header, fail)
    assert sorted(content(tmp_path)) == ["dataset.json", "shard-00000.arrow"]


def test_leftovers_vanish_and_a_renamed_but_unlisted_shard_is_written_again(build, tmp_path):
    header = build.make_header(7)
    DatasetWriter(tmp_path, header, plan_shards(7, 3), rows_per_batch=2)
    (tmp_path / ".shard-00001.arrow.tmp").write_bytes(b"half")
    (tmp_path / ".dataset.json.99.tmp").write_bytes(b"{")
    (tmp_path / "shard-00000.arrow").write_bytes(b"renamed, never listed")
    writer = DatasetWriter(tmp_path, header, plan_shards(7, 3), rows_per_batch=2)
    assert not list(tmp_path.glob(".*"))
    assert [plan.index for plan in writer.missing()] == [0, 1, 2]
    dump(build, tmp_path, header)
    assert verify(tmp_path).ok


@pytest.mark.parametrize("harm", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:100])])
def test_a_sealed_shard_that_vanished_or_was_cut_is_written_again(build, tmp_path, harm):
    header = build.make_header(7)
    dump(build, tmp_path, header)
    before = content(tmp_path)
    harm(tmp_path / "shard-00001.arrow")
    asked: list[int] = []
    dump(build, tmp_path, header, asked.append)
    assert asked == [3, 4, 5]
    assert content(tmp_path) == before


@pytest.mark.parametrize(
    ("header_changes", "rows_per_shard", "rows_per_batch", "named"),
    [
        ({"head_size": 9}, 3, 2, "head_size: 6 against 9"),
        ({"fingerprints": {"teacher": "zz"}}, 3, 2, "fingerprints: "),
        ({}, 4, 2, "rows_per_shard: shard-00000.arrow has 3 rows"),
        ({}, 3, 3, "rows_per_batch: 2 against 3"),
    ],
)
def test_other_settings_are_refused_by_name(build, tmp_path, header_changes, rows_per_shard, rows_per_batch, named):
    dump(build, tmp_path, build.make_header(7))
    before = content(tmp_path)
    with pytest.raises(ShardError) as refusal:
        DatasetWriter(tmp_path, build.make_header(7, **header_changes), plan_shards(7, rows_per_shard), rows_per_batch)
    assert named in str(refusal.value)
    assert "choose another name" in str(refusal.value)
    assert content(tmp_path) == before


def test_shards_whose_manifest_was_lost_are_not_overwritten(build, tmp_path):
    dump(build, tmp_path, build.make_header(7))
    (tmp_path / "dataset.json").unlink()
    with pytest.raises(ShardError, match=r"has shards but no dataset\.json"):
        DatasetWriter(tmp_path, build.make_header(7), plan_shards(7, 3))


def test_rows_out_of_order_or_too_few_are_our_mistake(build, tmp_path):
    header = build.make_header(3)
    writer = DatasetWriter(tmp_path, header, plan_shards(3, 3))
    with pytest.raises(AssertionError, match="row 1 came where 0 was due"):
        writer.write(writer.plan[0], [build.make_row(1, header)])
    with pytest.raises(AssertionError, match="the rows ended at 1"):
        writer.write(writer.plan[0], [build.make_row(0, header)])
    with pytest.raises(AssertionError, match="are not written"):
        writer.close()
    assert sorted(content(tmp_path)) == ["dataset.json"]


def test_a_second_writer_is_refused_with_the_name_of_the_first(tmp_path):
    refused = pytest.raises(UserError, match=f"already being written by process {os.getpid()} on")
    with folder_lock(tmp_path), refused, folder_lock(tmp_path, patience_s=0.0):
        pass


SCRIPT = """
    import subprocess, sys
    from dataclasses import replace
    from importlib.util import module_from_spec, spec_from_file_location
    from pathlib import Path
    from shards import DatasetWriter, plan_shards

    spec = spec_from_file_location("builders", sys.argv[1])
    build = module_from_spec(spec)
    spec.loader.exec_module(build)
    place = Path(sys.argv[2])
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=" + sys.argv[3], "none", place], check=True)
    header = build.make_header(200, max_length=200)
    writer = DatasetWriter(place, header, plan_shards(200, 5))
    if sys.argv[4] == "ro":
        subprocess.run(["mount", "-o", "remount,ro", place], check=True)
    try:
        row = build.make_row(0, header, length=200)
        for plan in writer.missing():
            writer.write(plan, [replace(row, row_id=plan.first_row + i) for i in range(5)])
    except OSError as error:
        print(error.errno, error.filename)
        names = sorted(path.name for path in place.iterdir())
        print(names[0], len(names), [plan.index for plan in writer.missing()][0])
"""


@pytest.mark.parametrize(("mode", "expected"), [("rw", "no space left"), ("ro", "read-only")])
def test_a_full_or_read_only_disk_raises_os_error_and_keeps_whole_shards(tmp_path, mode, expected):
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("needs a private mount namespace (unshare -rm)")
    builders = Path(__file__).with_name("builders.py")
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(builders), str(tmp_path), "400k", mode]
    run = subprocess.run(["unshare", "-rm", *command], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    first, second = run.stdout.splitlines()
    number, filename = first.split(" ", 1)
    user_error = from_os_error(OSError(int(number), "", filename))
    assert expected in str(user_error)
    assert Path(filename).name.endswith((".arrow", ".tmp"))
    lowest, count, missing = second.split()
    assert lowest == "dataset.json"
    assert int(count) == int(missing) + 1
    assert (int(missing) > 1) == (mode == "rw")


def test_a_finished_dataset_may_be_resumed_without_a_change(build, tmp_path):
    dump(build, tmp_path, build.make_header(7))
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    dump(build, tmp_path, build.make_header(7))
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    assert len(open_dataset(tmp_path)) == 7
