"""Picking a checkpoint among whole, cut, unmarked and foreign folders; no engine is started."""

import json

import pytest

from shards.errors import UserError
from student_train.checkpoint import COMPLETE, Keeping, complete_checkpoints, mark_complete, newest


def half(root, step, tag=None):
    """What a kill during DeepSpeed's save leaves: files, no marker."""
    folder = root / (tag or f"step-{step:08d}")
    folder.mkdir(parents=True)
    (folder / "zero_pp_rank_0_mp_rank_00_model_states.pt").write_bytes(b"m" * 10)
    (folder / "zero_pp_rank_0_mp_rank_00_optim_states.pt").write_bytes(b"o" * 20)
    return folder


def whole(root, step, ranks=2, digest="d" * 8, keep=9, tag=None):
    folder = half(root, step, tag)
    mark_complete(root, folder.name, step, Keeping(digest, ranks, global_batch=12, keep=keep))
    return folder


def pick(root, digest="d" * 8):
    found = newest(root, digest=digest)
    return None if found is None else found.tag


def test_nothing_and_unmarked_folders_mean_a_fresh_start(tmp_path):
    assert pick(tmp_path / "missing") is None
    half(tmp_path, 5)
    assert pick(tmp_path) is None


def test_the_newest_whole_one_is_picked_whatever_latest_says(tmp_path):
    whole(tmp_path, 5)
    whole(tmp_path, 10)
    half(tmp_path, 15)
    assert (tmp_path / "latest").read_text() == "step-00000010"
    (tmp_path / "latest").write_text("step-00000015")
    assert pick(tmp_path) == "step-00000010"


def test_a_final_checkpoint_of_the_same_step_comes_after_it(tmp_path):
    whole(tmp_path, 5)
    whole(tmp_path, 5, tag="step-00000005-final")
    assert pick(tmp_path) == "step-00000005-final"


@pytest.mark.parametrize("damage", ["cut", "missing", "marker"])
def test_one_whose_files_do_not_match_its_marker_is_passed_over(tmp_path, damage):
    whole(tmp_path, 5)
    broken = whole(tmp_path, 10)
    match damage:
        case "cut":
            (broken / "zero_pp_rank_0_mp_rank_00_optim_states.pt").write_bytes(b"o" * 19)
        case "missing":
            (broken / "zero_pp_rank_0_mp_rank_00_model_states.pt").unlink()
        case "marker":
            (broken / COMPLETE).write_text('{"step": 10, "wor')
    assert pick(tmp_path) == "step-00000005"


def test_marking_records_sizes_and_prunes_all_but_the_newest(tmp_path):
    for step in (5, 10, 15):
        whole(tmp_path, step, keep=2)
    assert [c.step for _, c in complete_checkpoints(tmp_path)] == [10, 15]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", "step-00000010", "step-00000015"]
    marker = json.loads((tmp_path / "step-00000015" / COMPLETE).read_text())
    assert sorted(marker["files"].values()) == [10, 20]


def test_what_is_found_says_who_wrote_it_and_the_batch_that_must_stay(tmp_path):
    whole(tmp_path, 5, ranks=2)
    found = newest(tmp_path, digest="d" * 8)
    assert (found.tag, found.step, found.world, found.global_batch) == ("step-00000005", 5, 2, 12)


def test_a_universal_form_left_by_an_earlier_start_is_never_picked_and_goes_with_the_next_checkpoint(tmp_path):
    whole(tmp_path, 5)
    half(tmp_path, 5, tag="step-00000005-universal")
    half(tmp_path, 5, tag="step-00000005-universal.tmp")
    assert pick(tmp_path) == "step-00000005"
    whole(tmp_path, 10)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", "step-00000005", "step-00000010"]


def test_other_settings_are_refused_by_digest(tmp_path):
    whole(tmp_path, 5, digest="a" * 64)
    with pytest.raises(UserError, match="digest aaaaaaaa, wanted bbbbbbbb"):
        pick(tmp_path, digest="b" * 64)
