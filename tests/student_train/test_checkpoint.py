"""Picking a checkpoint among whole, cut, unmarked and foreign folders; no engine is started."""

import json

import pytest

from shards.errors import UserError
from student_train.checkpoint import COMPLETE, complete_checkpoints, mark_complete, newest


def half(root, step, tag=None):
    """What a kill during DeepSpeed's save leaves: files, no marker."""
    folder = root / (tag or f"step-{step:08d}")
    folder.mkdir(parents=True)
    (folder / "zero_pp_rank_0_mp_rank_00_model_states.pt").write_bytes(b"m" * 10)
    (folder / "zero_pp_rank_0_mp_rank_00_optim_states.pt").write_bytes(b"o" * 20)
    return folder


def whole(root, step, ranks=2, digest="d" * 8, keep=9, tag=None):
    folder = half(root, step, tag)
    mark_complete(root, folder.name, step=step, ranks=ranks, digest=digest, keep=keep)
    return folder


def pick(root, ranks=2, digest="d" * 8):
    return newest(root, digest=digest, ranks=ranks)


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


def test_another_world_size_is_refused_with_the_remedy(tmp_path):
    whole(tmp_path, 5, ranks=2)
    with pytest.raises(UserError, match=r"written by 2 ranks, this run has 1; set train.ranks=2"):
        pick(tmp_path, ranks=1)


def test_other_settings_are_refused_by_digest(tmp_path):
    whole(tmp_path, 5, digest="a" * 64)
    with pytest.raises(UserError, match="digest aaaaaaaa, wanted bbbbbbbb"):
        pick(tmp_path, digest="b" * 64)
