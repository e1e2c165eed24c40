"""Which stages start, what is set aside and brought back, and who may write."""

from __future__ import annotations

import json
import os
from collections.abc import Callable

import pytest
from fake_phases import FakePhases

from pipeline.config import RunConfig
from pipeline.progress import Screen
from pipeline.readers import reading
from pipeline.run import StageError, phase_environment, restore, run_stages
from pipeline.stages import plan_run
from shards.errors import UserError
from shards.files import folder_lock

MakeConfig = Callable[..., RunConfig]
ALL = ["prepare", "dump", "train", "eval", "export"]


def run(config: RunConfig, screen: Screen) -> str:
    plan = plan_run(config)
    run_stages(plan, plan.stages, screen)
    return screen.console.file.getvalue()  # type: ignore[attr-defined]


def test_a_second_run_starts_nothing_and_says_so(
    make_config: MakeConfig, fake_phases: FakePhases, screen: Screen
) -> None:
    run(make_config(), screen)
    assert sorted(fake_phases.started()) == sorted(ALL)
    said = run(make_config(), screen)
    assert fake_phases.started() == []
    assert said.count("done before, nothing to do") == 6


def test_a_changed_training_key_runs_training_and_what_follows_and_going_back_runs_nothing(
    make_config: MakeConfig, fake_phases: FakePhases, screen: Screen
) -> None:
    run(make_config(), screen)
    fake_phases.started()
    run(make_config("train.seed=1"), screen)
    assert fake_phases.started() == ["train", "eval", "export"]
    aside = sorted(p.name.split(".")[0] for p in (fake_phases.root / "runs" / "r").glob("*.????????"))
    assert aside == ["eval", "export", "report", "train"]
    said = run(make_config(), screen)
    assert fake_phases.started() == []
    assert said.count("brought back") == 4


def test_a_partial_stage_of_the_same_settings_stays_where_it_is(
    make_config: MakeConfig, fake_phases: FakePhases, screen: Screen
) -> None:
    stage = plan_run(make_config()).stages[0]
    stage.folder.mkdir(parents=True)
    marker = {"stage": "prepare", "digest": stage.digest, "done": False, "summary": {}}
    (stage.folder / "stage.json").write_text(json.dumps(marker))
    (stage.folder / "half.arrow").write_text("kept")
    assert restore(stage) is False
    run(make_config(), screen)
    assert (stage.folder / "half.arrow").read_text() == "kept"


def test_a_lock_left_by_a_dead_process_does_not_keep_results_from_coming_back(
    make_config: MakeConfig, fake_phases: FakePhases, screen: Screen
) -> None:
    run(make_config(), screen)
    run(make_config("train.seed=1"), screen)
    train = plan_run(make_config()).stages[2]
    train.folder.rename(train.folder.with_name("train.elsewhere"))
    train.folder.mkdir()
    (train.folder / ".lock").touch()
    assert restore(train) is True


def test_a_second_conductor_of_the_same_run_is_refused_by_name(make_config: MakeConfig, screen: Screen) -> None:
    plan = plan_run(make_config())
    with folder_lock(plan.run_folder), pytest.raises(UserError, match=f"process {os.getpid()}"):
        run_stages(plan, plan.stages, screen)


def test_a_folder_that_is_being_written_is_not_set_aside(
    make_config: MakeConfig, fake_phases: FakePhases, screen: Screen
) -> None:
    run(make_config(), screen)
    train = plan_run(make_config("train.seed=1")).stages[2]
    with folder_lock(train.folder), pytest.raises(UserError, match="already being written"):
        restore(train)


def test_a_dump_that_another_run_reads_is_not_set_aside(
    make_config: MakeConfig, fake_phases: FakePhases, screen: Screen
) -> None:
    run(make_config(), screen)
    plan = plan_run(make_config("dump.head_size=4", "name=other", dump_name="r"))
    with reading(plan.dump_folder), pytest.raises(UserError, match="another run is reading it"):
        run_stages(plan, plan.stages, screen)
    run_stages(plan, plan.stages, screen)


@pytest.mark.parametrize(("given", "nearest"), [(6, "4 and 8"), (2, "4")])
def test_a_global_batch_that_does_not_divide_is_refused_before_anything_starts(
    make_config: MakeConfig, fake_phases: FakePhases, screen: Screen, given: int, nearest: str
) -> None:
    config = make_config(f"train.global_batch={given}", "train.ranks=2", "train.batch_size=2")
    with pytest.raises(
        UserError, match=f"train.global_batch: {given} does not divide .* the nearest that do: {nearest}$"
    ):
        run(config, screen)
    assert fake_phases.started() == []
    plan = plan_run(config)
    run_stages(plan, plan.until("dump"), screen)


def test_the_settings_of_a_run_are_kept_beside_it(
    make_config: MakeConfig, fake_phases: FakePhases, screen: Screen
) -> None:
    run(make_config("train.steps=7"), screen)
    kept = json.loads((fake_phases.root / "runs" / "r" / "config.json").read_text())
    assert RunConfig.model_validate(kept).train.steps == 7


def test_a_phase_that_dies_gives_exit_code_1_with_the_end_of_its_log(
    make_config: MakeConfig, fake_phases: FakePhases, screen: Screen
) -> None:
    (fake_phases.root / "fake_phase.py").write_text("print('before'); raise RuntimeError('the reason')")
    with pytest.raises(StageError) as caught:
        run(make_config(), screen)
    assert caught.value.code == 1
    assert "prepare: failed (exit code 1)" in caught.value.lines[0]
    assert "RuntimeError: the reason" in caught.value.lines


def test_a_user_error_of_a_phase_gives_exit_code_2_and_its_line(
    make_config: MakeConfig, fake_phases: FakePhases, screen: Screen
) -> None:
    script = """
from shards.job import guarded, print_event
from shards.errors import UserError
import sys
def work():
    raise UserError("corpus.txt:7: not JSON; mend the line")
sys.exit(guarded(work, print_event))
"""
    (fake_phases.root / "fake_phase.py").write_text(script)
    with pytest.raises(StageError) as caught:
        run(make_config(), screen)
    assert (caught.value.code, caught.value.lines) == (2, ["corpus.txt:7: not JSON; mend the line"])


def test_phases_find_this_tree_and_not_the_working_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/theirs")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    env = phase_environment(ranks=10_000)
    assert env["PYTHONPATH"].endswith(f"{os.pathsep}/theirs")
    assert (env["PYTHONSAFEPATH"], env["OMP_NUM_THREADS"], env["DS_ACCELERATOR"]) == ("1", "1", "cpu")
