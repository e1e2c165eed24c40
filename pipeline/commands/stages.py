"""`run` and the single stages: prepare, dump, train, eval, export, report. Each does what is missing before it too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from shards.errors import UserError
from shards.files import read_json
from teacher_dump.config import HFTeacher, PackagedTeacher, PrepareConfig, Teacher

from ..endscreen import show_end
from ..load import load_config
from ..run import restore, run_stage, run_stages, short
from ..stages import Name, Plan, plan_run, prepare_stage
from .target import AsJson, Target, read_target, screen_for


def add(app: typer.Typer) -> None:
    app.command(epilog="Example: minicodformer run configs/quickstart.yaml train.steps=50")(run)
    app.command(epilog="Example: minicodformer prepare --input texts.jsonl --output data/processed --train-size 20000")(
        prepare
    )
    app.command(epilog="Example: minicodformer dump configs/qwen3-8b.yaml teacher.model=models/Qwen3-8B")(dump)
    app.command(epilog="Example: minicodformer train configs/quickstart.yaml train.steps=300 name=longer")(train)
    app.command("eval", epilog="Example: minicodformer eval configs/quickstart.yaml --json")(evaluate)
    app.command(epilog="Example: minicodformer export configs/quickstart.yaml export.dtype=bfloat16")(export)
    app.command(epilog="Example: minicodformer sweep configs/sweep.yaml")(sweep)
    app.command(epilog="Example: minicodformer report configs/compare.yaml")(report)


def run(
    target: Target = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say which stages would run.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run every stage of a configuration that is not done yet."""
    config, path = read_target(target)
    plan = plan_run(config)
    if dry_run:
        _show_plan(plan, as_json)
        return
    screen = screen_for(as_json)
    run_stages(plan, plan.stages, screen)
    if as_json:
        typer.echo(json.dumps({stage.label: str(stage.folder) for stage in plan.stages}, indent=1))
    else:
        show_end(plan, path, screen)


def prepare(
    target: Target = None,
    files: Annotated[
        list[Path] | None, typer.Option("--input", help="Corpus file; more may follow as arguments.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Folder for the rows (with --input).")] = None,
    train_size: Annotated[int, typer.Option(min=1, help="Training samples, counted before packing.")] = 20_000,
    val_size: Annotated[int, typer.Option(min=0, help="Held-out samples.")] = 2_000,
    max_length: Annotated[int, typer.Option(min=8, help="Tokens in a row.")] = 128,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="Hub name, folder, packaged teacher or a configuration; default: the quickstart teacher's."),
    ] = None,
) -> None:
    """Corpus files into tokenised, packed rows: with --input by flags, else as a configuration says."""
    if not files:
        if output is not None:
            raise UserError(
                f"--output {output}: only with --input; a configuration says itself where rows go (root, name)"
            )
        _until("prepare", target)
        return
    if output is None:
        raise UserError("--output: missing; name the folder for the rows, as in --output data/processed")
    inputs = tuple(path.expanduser().absolute() for path in [*files, *map(Path, target or [])])
    teacher, name = _tokenizer_of(tokenizer)
    settings = PrepareConfig(
        input=inputs, tokenizer=name, train_size=train_size, val_size=val_size, max_length=max_length
    )
    screen = screen_for(False)
    stage = prepare_stage(teacher, settings, output.expanduser().absolute())
    if stage.is_done() or restore(stage):
        screen.line(f"prepare: done before, nothing to do ({short(stage.folder)})")
    else:
        run_stage(stage, screen)
        screen.line(f"rows: {short(stage.folder)}")


def dump(target: Target = None) -> None:
    """Let the teacher read the rows: distributions of every scored position into shards."""
    _until("dump", target)


def train(target: Target = None) -> None:
    """Train the student from the shards; goes on from the newest whole checkpoint."""
    _until("train", target)


def evaluate(target: Target = None, as_json: AsJson = False) -> None:
    """Held-out figures of the student against its untrained twin and a unigram model."""
    plan = _until("eval", target, as_json)
    if as_json:
        found = {n or plan.config.name: read_json(s.folder / "eval" / "eval.json") for n, s in plan.students.items()}
        typer.echo(json.dumps(found if len(found) > 1 else next(iter(found.values())), indent=1, ensure_ascii=False))


def export(target: Target = None) -> None:
    """The student as a folder that stands alone: safetensors, configuration, tokenizer, model card."""
    config, _ = read_target(target)
    if config.variants:
        raise UserError(
            f"{config.name}: has variants; export one of them: give it as a run of its own, without 'variants' "
            f"(they are {', '.join(config.variants)})"
        )
    _until("export", target)


def sweep(
    target: Target = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say which students would be trained.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train every student of the `sweep` section, one after the other, and compare them; goes on where it stopped."""
    config, _ = read_target(target)
    if config.sweep is None:
        raise UserError(f"{config.name}: has no sweep; add 'sweep: {{grid: {{train.student.hidden_size: [64, 128]}}}}'")
    run(target, dry_run, as_json)


def report(target: Target = None) -> None:
    """One HTML page with curves, figures and samples."""
    plan = _until("report", target)
    typer.echo(str(plan.run_folder / "report" / "report.html"))


def _until(name: Name, target: list[str] | None, as_json: bool = False) -> Plan:
    config, _ = read_target(target)
    plan = plan_run(config)
    run_stages(plan, plan.until(name), screen_for(as_json))
    return plan


def _show_plan(plan: Plan, as_json: bool) -> None:
    states = [{"stage": s.label, "done": s.is_done(), "folder": str(s.folder), "digest": s.digest} for s in plan.stages]
    if as_json:
        typer.echo(json.dumps(states, indent=1))
        return
    for state in states:
        typer.echo(f"{state['stage']:24} {'done' if state['done'] else 'to do':6} {state['folder']}")


def _tokenizer_of(given: str | None) -> tuple[Teacher, str | None]:
    """`--tokenizer`: a configuration stands for its teacher, anything else is a tokenizer's name or folder."""
    if given is None:
        return PackagedTeacher(), None
    path = Path(given).expanduser()
    if path.suffix in (".yaml", ".yml", ".toml"):
        config = load_config(path)
        return config.teacher, config.prepare.tokenizer
    if given == PackagedTeacher().name:
        return PackagedTeacher(), None
    place = str(path.resolve()) if path.exists() else given
    return HFTeacher(model=place), place
