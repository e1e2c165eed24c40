"""dataset.json: canonical, self-hashed, and refused when it is newer or touched."""

from __future__ import annotations

import hashlib
import json

import pytest

from shards import FORMAT_VERSION, Manifest, ShardError, plan_shards
from shards.files import canonical_json
from shards.manifest import MANIFEST_NAME, load_manifest, save_manifest


@pytest.fixture
def folder(build, tmp_path):
    header = build.make_header(7, extra={"split": "训练", "dropped": {"empty": 2}}, must_keep=(3,), threads=2)
    return build.write_dataset(tmp_path, header, [build.make_row(i, header) for i in range(7)])


def test_a_manifest_comes_back_equal_and_byte_identical(folder):
    manifest = load_manifest(folder)
    before = (folder / MANIFEST_NAME).read_bytes()
    save_manifest(folder, manifest)
    assert load_manifest(folder) == manifest
    assert (folder / MANIFEST_NAME).read_bytes() == before


def test_any_flipped_bit_of_the_manifest_is_caught(folder):
    path = folder / MANIFEST_NAME
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :])
        with pytest.raises(ShardError, match=r"dataset\.json: "):
            load_manifest(folder)


def test_other_white_space_is_caught_too(folder):
    path = folder / MANIFEST_NAME
    path.write_text(json.dumps(json.loads(path.read_text())))
    with pytest.raises(ShardError, match="not byte by byte what was written"):
        load_manifest(folder)


def test_a_newer_version_is_refused_by_name(folder):
    path = folder / MANIFEST_NAME
    body = json.loads(path.read_text())
    del body["sha256"]
    body |= {"version": FORMAT_VERSION + 1, "novelty": [1]}
    body["sha256"] = hashlib.sha256(canonical_json(body).encode()).hexdigest()
    path.write_text(json.dumps(body))
    with pytest.raises(ShardError, match=r"format version 2 is newer than 1.*update the program"):
        load_manifest(folder)


def test_a_folder_without_manifest_is_named(tmp_path):
    with pytest.raises(ShardError, match=r"not a dataset \(no dataset\.json\)"):
        load_manifest(tmp_path)


def test_the_manifest_counts_what_is_in_the_rows(build, folder):
    manifest = load_manifest(folder)
    rows = [build.make_row(i, manifest.header) for i in range(7)]
    assert manifest.num_tokens == sum(row.num_tokens for row in rows)
    assert manifest.num_scored == sum(row.num_scored for row in rows)
    dead = sum(row.capture.dead_row_mass * row.num_scored for row in rows) / manifest.num_scored
    assert manifest.dead_row_mass == pytest.approx(dead)


def test_headers_that_differ_say_where(build):
    assert build.make_header(3).difference(build.make_header(3)) is None
    assert build.make_header(3, head_size=8).difference(build.make_header(3)) == "head_size: 8 against 6"


def test_planned_shards_cover_the_rows_in_order():
    assert [(p.index, p.first_row, p.num_rows) for p in plan_shards(7, 3)] == [(0, 0, 3), (1, 3, 3), (2, 6, 1)]
    assert plan_shards(0, 3) == ()


def test_an_empty_dataset_is_a_dataset(build, tmp_path):
    build.write_dataset(tmp_path, build.make_header(0), [])
    assert load_manifest(tmp_path) == Manifest(build.make_header(0), 2, (), True)
