"""A sweep becomes variants with readable names; its report compares them by mean and spread."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_phases import FakePhases

from pipeline.comparison import spreads
from pipeline.config import RunConfig, SweepConfig
from pipeline.figures import figures_of
from pipeline.load import load_config
from pipeline.progress import Screen
from pipeline.report import write_report
from pipeline.run import run_stages
from pipeline.stages import plan_run
from pipeline.sweep import groups_of, variants_of
from shards.errors import UserError

MakeConfig = Callable[..., RunConfig]
SWEEP = {"grid": {"train.student.hidden_size": [16, 32], "train.steps": [5]}, "seeds": [0, 1]}
CONTROL = {"train.loss.hybrid": 0.0, "train.loss.forward_kl": 0.0, "train.loss.cross_entropy": 1.0}


def test_every_combination_is_trained_with_every_seed_and_the_control_too() -> None:
    made = variants_of(SweepConfig.model_validate(SWEEP))
    assert list(made) == [
        f"{name}_seed-{seed}"
        for name in ("control", "hidden_size-16_steps-5", "hidden_size-32_steps-5")
        for seed in (0, 1)
    ]
    assert made["control_seed-1"] == CONTROL | {"train.seed": 1}
    assert made["hidden_size-32_steps-5_seed-0"] == {
        "train.student.hidden_size": 32, "train.steps": 5, "train.seed": 0
    }  # fmt: skip


def test_points_stand_beside_the_grid_and_one_seed_needs_no_name() -> None:
    sweep = SweepConfig(
        grid={"train.steps": [5]}, points=[{"train.loss.hybrid": 0.5, "train.zero_stage": 1}], seeds=(7,)
    )
    assert variants_of(sweep) == {
        "control": CONTROL | {"train.seed": 7},
        "steps-5": {"train.steps": 5, "train.seed": 7},
        "hybrid-0.5_zero_stage-1": {"train.loss.hybrid": 0.5, "train.zero_stage": 1, "train.seed": 7},
    }


def test_keys_that_end_alike_are_written_out() -> None:
    sweep = SweepConfig(grid={"train.student.cell.wiring.seed": [1], "train.seed": [2]})
    assert list(variants_of(sweep))[1] == "train.student.cell.wiring.seed-1_train.seed-2"


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ({}, "nothing to sweep"),
        ({"grid": {"train.steps": []}}, "at least 1 item"),
        ({"grid": {"train.steps": [1]}, "seeds": [3, 3]}, "has one twice"),
        ({"grid": {"dump.head_size": [4, 8]}}, "dump.head_size: variants share one dump"),
        ({"grid": {"train.stepz": [4, 8]}}, "train.stepz: not a field .*steps"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused_before_anything_starts(
    make_config: MakeConfig, sweep: object, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        make_config(sweep=sweep)


def test_a_sweep_runs_as_variants_and_a_second_time_runs_nothing(
    make_config: MakeConfig, fake_phases: FakePhases, screen: Screen
) -> None:
    plan = plan_run(make_config(sweep=SWEEP))
    run_stages(plan, plan.stages, screen)
    assert sorted(fake_phases.started()) == sorted(["prepare", "dump", *["train", "eval"] * 6])
    assert (plan.run_folder / "control_seed-0" / "train" / "stage.json").exists()
    again = plan_run(make_config(sweep=SWEEP))
    run_stages(again, again.stages, screen)
    assert fake_phases.started() == []


def test_a_further_seed_trains_only_the_students_of_that_seed(
    make_config: MakeConfig, fake_phases: FakePhases, screen: Screen
) -> None:
    for seeds in ([0, 1], [0, 1, 2]):
        plan = plan_run(make_config(sweep=SWEEP | {"seeds": seeds}))
        fake_phases.started()
        run_stages(plan, plan.stages, screen)
    assert fake_phases.started() == ["train", "eval"] * 3


def test_the_report_gives_mean_and_spread_of_each_group(make_config: MakeConfig, tmp_path: Path) -> None:
    plan = plan_run(make_config(sweep=SWEEP))
    for k, student in enumerate(plan.students.values()):
        for folder in ("eval", "train"):
            (student.folder / folder).mkdir(parents=True)
        (student.folder / "eval" / "eval.json").write_text(json.dumps({"student": {"cross_entropy": 2.0 * k}}))
        line = {"step": 1, "loss": 9, "cross_entropy": k}
        (student.folder / "train" / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    figures = {f.name: f for f in figures_of(plan)}
    assert plan.config.sweep is not None
    groups = groups_of(plan.config.sweep)
    assert groups["control"] == ["control_seed-0", "control_seed-1"]
    mean, spread = spreads([figures[name] for name in groups["hidden_size-32_steps-5"]])["cross_entropy"]
    assert (mean, spread) == (9.0, pytest.approx(2**0.5))
    write_report(plan, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "9 <small>± 1.4</small>" in text
    assert text.index("<h2>Sweep</h2>") < text.index("Held-out figures")


def test_the_example_sweep_is_a_valid_configuration() -> None:
    config = load_config(Path(__file__).parents[2] / "configs" / "sweep.yaml")
    assert len(config.variants) == 10
