"""`serve` and `chat`: the student takes this process over, so that signals and the terminal are its own."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from pydantic import ValidationError

from shards.errors import UserError
from student_train.config import ChatConfig, GenerateConfig, ServeConfig

from ..run import phase_environment
from .generate import Run, find_student

Model = Annotated[Path | None, typer.Option("--model", "--student", help="A student's folder (model/, or an export).")]
Root = Annotated[Path, typer.Option(help="Where runs/ lies.")]
_SAMPLING = GenerateConfig()


def add(app: typer.Typer) -> None:
    app.command(epilog="Example: minicodformer serve --run quickstart --port 8000")(serve)
    app.command(epilog="Example: minicodformer chat --run qwen3-8b --temperature 0.7")(chat)


def serve(  # noqa: PLR0913 (every flag is a parameter)
    run: Run = None,
    model: Model = None,
    root: Root = Path(),
    name: Annotated[str | None, typer.Option(help="What clients call the model; default: the run's name.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0: reachable from elsewhere.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="0: any free one.")] = 8000,
    api_key_env: Annotated[str | None, typer.Option(help="Environment variable with the key to ask for.")] = None,
    max_rows: Annotated[int, typer.Option(min=1, help="Sequences written at once.")] = 64,
    max_waiting: Annotated[int, typer.Option(min=0, help="Sequences that may wait; more get 429.")] = 256,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens a request may ask for.")] = 4096,
    max_prompt_tokens: Annotated[int, typer.Option(min=1)] = 8192,
    max_body_bytes: Annotated[int, typer.Option(min=1)] = 1 << 20,
    timeout: Annotated[float, typer.Option(min=0.1, help="Longest life of a request, seconds.")] = 300,
    grace: Annotated[float, typer.Option(min=0, help="Seconds for running requests after SIGTERM.")] = 20,
) -> None:
    """Serve a student over HTTP, as the OpenAI API speaks, with a playground page at /."""
    for package in ("starlette", "uvicorn"):
        if find_spec(package) is None:
            raise UserError(f"{package}: not installed; python -m pip install -e '.[train,serve]'")
    folder = find_student(root, run, model)
    try:
        config = ServeConfig(
            model=folder.absolute(),
            name=name or _name_of(folder),
            host=host,
            port=port,
            api_key_env=api_key_env,
            max_rows=max_rows,
            max_waiting=max_waiting,
            max_new_tokens=max_new_tokens,
            max_prompt_tokens=max_prompt_tokens,
            max_body_bytes=max_body_bytes,
            timeout_s=timeout,
            grace_s=grace,
        )
    except ValidationError as e:
        raise UserError(f"serve: {e.errors()[0]['loc'][0]}: {e.errors()[0]['msg']}") from None
    _become("student_train.serve", config.model_dump_json())


def chat(  # noqa: PLR0913 (every flag is a parameter)
    run: Run = None,
    model: Model = None,
    root: Root = Path(),
    system: Annotated[str | None, typer.Option(help="A system message to begin with.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 512,
    temperature: Annotated[float, typer.Option(min=0, help="0: always the most likely token.")] = _SAMPLING.temperature,
    top_p: Annotated[float, typer.Option(min=0, max=1)] = _SAMPLING.top_p,
    min_p: Annotated[float, typer.Option(min=0, max=1, help="0: off.")] = _SAMPLING.min_p,
    seed: Annotated[int, typer.Option()] = _SAMPLING.seed,
) -> None:
    """Talk with a student under its chat template. /reset forgets, /quit ends, Ctrl-C cuts an answer short."""
    folder = find_student(root, run, model)
    sampling = GenerateConfig(
        max_new_tokens=max_new_tokens, temperature=temperature, top_p=max(top_p, 1e-6), min_p=min_p, seed=seed
    )
    config = ChatConfig(model=folder.absolute(), system=system, generate=sampling)
    _become("student_train.chat", config.model_dump_json())


def _name_of(folder: Path) -> str:
    """runs/NAME/train/model and runs/NAME/export -> NAME; else the folder's own name."""
    parts = folder.resolve().parts
    if parts[-2:] == ("train", "model") and len(parts) > 2:
        return parts[-3]
    return parts[-2] if parts[-1] == "export" and len(parts) > 1 else parts[-1]


def _become(module: str, config: str) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, "-m", module, config], phase_environment())
