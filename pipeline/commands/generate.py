"""`generate`: let a trained student write. The student itself runs as a process of phase two."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from shards.errors import UserError
from shards.files import write_atomic, write_json
from shards.job import EXIT_USER
from shards.stage import read_marker
from student_train.config import GenerateConfig, GenerateJob

from ..process import StopSignals, run_phase, tail
from ..run import StageError, generate_command, phase_environment
from .target import AsJson

_DEFAULT = GenerateConfig()
Run = Annotated[str | None, typer.Option(help="A run's name or folder; default: the newest trained one.")]


def add(app: typer.Typer) -> None:
    app.command(epilog="Example: minicodformer generate --input 'It was' --run quickstart --temperature 0.7")(generate)


def generate(  # noqa: PLR0913 (every flag is a parameter)
    text: Annotated[str | None, typer.Option("--input", help="The beginning to go on from; -: standard input.")] = None,
    file: Annotated[Path | None, typer.Option(help="Take the beginning from this file.")] = None,
    output: Annotated[Path | None, typer.Option(help="Write to this file what would be shown.")] = None,
    run: Run = None,
    student: Annotated[Path | None, typer.Option(help="A student's folder (model/ of a run, or an export).")] = None,
    root: Annotated[Path, typer.Option(help="Where runs/ lies.")] = Path(),
    chat: Annotated[bool, typer.Option("--chat", help="Wrap the input in the chat template.")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = _DEFAULT.max_new_tokens,
    temperature: Annotated[float, typer.Option(min=0, help="0: always the most likely token.")] = _DEFAULT.temperature,
    top_k: Annotated[int, typer.Option(min=0, help="0: off.")] = _DEFAULT.top_k,
    top_p: Annotated[float, typer.Option(min=0, max=1)] = _DEFAULT.top_p,
    min_p: Annotated[float, typer.Option(min=0, max=1, help="0: off.")] = _DEFAULT.min_p,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text (repeatable).")] = None,
    repetition_penalty: Annotated[float, typer.Option(min=0.01)] = _DEFAULT.repetition_penalty,
    seed: Annotated[int, typer.Option()] = _DEFAULT.seed,
    time_stats: Annotated[bool, typer.Option("--time-stats", help="Say on standard error how fast it was.")] = False,
    as_json: AsJson = False,
) -> None:
    """Let a trained student write."""
    sampling = GenerateConfig(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=max(top_p, 1e-6),
        min_p=min_p,
        stop=tuple(s for s in stop or () if s),
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    model = find_student(root, run, student)
    job = GenerateJob(generate=sampling, model=model.absolute(), prompt=_prompt(text, file), chat=chat)
    silent = as_json or output is not None
    first = "" if chat else job.prompt
    result = _run(job, _ignore if silent else _write_on, "" if silent else first)
    if as_json:
        text = json.dumps({"student": str(model), **result}, ensure_ascii=False, indent=1) + "\n"
    else:
        text = f"{first}{result['text']}\n"
    if output is not None:
        write_atomic(output, text)
    elif as_json:
        typer.echo(text, nl=False)
    else:
        typer.echo()
    if time_stats:
        typer.echo(_speed(result), err=True)


def _speed(result: Mapping[str, Any]) -> str:
    each = result["ms_per_token"]
    pace = f", then {each:.2f} ms a token ({1000 / each:.1f} tokens/s)" if each else ""
    counts = f"prompt {result['prompt_tokens']} tokens, written {result['tokens']}"
    return f"{counts}; first token after {result['first_token_ms']:.1f} ms{pace}"


def find_student(root: Path, run: str | None, student: Path | None) -> Path:
    """The folder with the student's weights.

    Raises:
        UserError: there is none where it was said to be, or none at all.
    """
    if student is not None:
        if not (student / "config.json").exists():
            raise UserError(f"{student}: no student there (no config.json); give model/ of a run, or an export")
        return student
    if run is not None:
        for folder in (root / "runs" / run, Path(run)):
            if (folder / "train" / "model" / "config.json").exists():
                return folder / "train" / "model"
        raise UserError(
            f"{run}: no trained student in {root / 'runs' / run} nor in {run}; train one, or list {root / 'runs'}"
        )
    trained = [
        m for m in (root / "runs").glob("**/train/stage.json") if (found := read_marker(m.parent)) and found.done
    ]
    if not trained:
        raise UserError(
            f"{root / 'runs'}: no trained student yet; start with 'minicodformer run', or give --student DIR"
        )
    return max(trained, key=lambda m: m.stat().st_mtime).parent / "model"


def _prompt(text: str | None, file: Path | None) -> str:
    if (text is None) == (file is None):
        raise UserError("--input: give either --input TEXT or --file FILE, one of them")
    if text == "-":
        try:
            return sys.stdin.buffer.read().decode("utf-8").rstrip("\n")
        except UnicodeDecodeError as e:
            raise UserError(f"--input -: standard input is not UTF-8 text ({e})") from None
    if text is not None:
        return text
    assert file is not None
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"{file}: not readable as UTF-8 text ({e}); name a text file") from None


def _ignore(_: str) -> None:
    pass


def _write_on(piece: str) -> None:
    typer.echo(piece, nl=False)
    sys.stdout.flush()


def _run(job: GenerateJob, show: Callable[[str], None], first: str = "") -> dict[str, Any]:
    """Run the job as a process; its one `result` event. Text goes to `show` as it comes, `first` before it."""
    results: list[dict[str, Any]] = []
    errors: list[str] = []
    waiting = [first] if first else []  # shown with the first token: an error shall not stand behind half a line

    def on_event(event: Mapping[str, Any]) -> None:
        match event.get("event"):
            case "token":
                show("".join(waiting) + str(event.get("text", "")))
                waiting.clear()
            case "result":
                results.append({k: v for k, v in event.items() if k != "event"})
            case "error" if event.get("kind") == "user":
                errors.append(str(event.get("text")))

    with tempfile.TemporaryDirectory(prefix="minicodformer-") as scratch, StopSignals().caught() as stop:
        job_file, log = Path(scratch) / "generate.json", Path(scratch) / "generate.log"
        write_json(job_file, job.model_dump(mode="json"))
        outcome = run_phase(generate_command(job_file), phase_environment(), log, on_event, lambda: None, stop)
        end = tail(log).splitlines()
    if outcome.interrupted is not None:
        raise StageError(128 + outcome.interrupted, ["generate: stopped"])
    if errors:
        raise StageError(EXIT_USER, errors)
    if outcome.code != 0 or not results:
        raise StageError(1, [f"generate: failed (exit code {outcome.code}); the end of its output:", *end])
    return results[-1]
