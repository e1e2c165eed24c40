"""The last screen of a run: where things are, how good the student is, what it says, what to try next."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

from .figures import Figures, Likely, figures_of, standings
from .progress import Screen
from .run import short
from .stages import Plan

_CONTEXT = 60


def show_end(plan: Plan, config_file: Path, screen: Screen) -> None:
    """Print it. Everything is read from the finished stages' files."""
    screen.line("")
    for what, place in places(plan).items():
        screen.line(f"{what:8} {short(place)}")
    figures = figures_of(plan)
    for text in figure_lines(figures):
        screen.line(text)
    for text in sample_lines(figures[0]):
        screen.line(text)
    screen.line("")
    screen.line("next:", style="bold")
    for text in next_steps(plan, config_file):
        screen.line(f"  {text}")


def places(plan: Plan) -> dict[str, Path]:
    """What the run left, by what it is."""
    found = {"shards": plan.dump_folder / "shards"}
    for name, student in plan.students.items():
        found[name or "student"] = student.folder / "train" / "model"
    found |= {stage.name: stage.folder for stage in plan.stages if stage.name == "export"}
    return found | {"report": plan.run_folder / "report" / "report.html"}


def figure_lines(figures: list[Figures]) -> list[str]:
    """Held-out KL and cross-entropy of every student against its untrained twin and the unigram model."""
    rows = standings(figures)
    if not rows:
        return []
    lines = ["", "held-out text (nats; lower is better)   KL to teacher   cross-entropy"]
    for label, _, values in rows:
        kl = values.get("kl_exact", values.get("kl_estimate"))
        entropy = values.get("cross_entropy")
        cells = ["-" if value is None else f"{value:.3f}" for value in (kl, entropy)]
        lines.append(f"  {label:38}{cells[0]:>13}{cells[1]:>16}")
    return lines


def sample_lines(f: Figures) -> list[str]:
    """Positions of real text, and one generated line."""
    lines = []
    for s in f.samples[:3]:
        context = s.context if len(s.context) <= _CONTEXT else "…" + s.context[-_CONTEXT:]
        lines += ["", f"{_visible(context)} → {_quoted(s.label)}"]
        lines += [f"  teacher  {_likely(s.teacher)}", f"  student  {_likely(s.student)}"]
    if f.generated:
        lines += ["", f"the student writes: {_visible(f.prompt)}|{_visible(f.generated)}"]
    return lines


def next_steps(plan: Plan, config_file: Path) -> list[str]:
    """Commands to try, each as it can be typed here."""
    run = plan.config.name if not plan.config.variants else f"{plan.config.name}/{next(iter(plan.config.variants))}"
    shards = short(plan.dump_folder / "shards" / "train")
    command = "minicodformer" if shutil.which("minicodformer") else ".venv/bin/minicodformer"
    opened = f"pa.ipc.open_file('{shards}/shard-00000.arrow').get_batch(0)"
    snippet = f"import pyarrow as pa; print({opened}.slice(0, 1).to_pydict())"
    return [
        f"{command} generate --run {run} --input 'It was'",
        f"{command} shards inspect {shards}",
        f"{command} run {shlex.quote(short(config_file))} name=second dump_name={plan.dump_folder.name} train.seed=1",
        f"{command} init my.yaml --data YOUR_TEXT.txt",
        f'{short(Path(sys.executable))} -c "{snippet}"   # the shards are plain Arrow files',
    ]


def _likely(pairs: Likely) -> str:
    return "  ".join(f"{_quoted(token)} {p:.2f}" for token, p in pairs[:5])


def _visible(text: str) -> str:
    return text.replace("\n", "⏎").replace("\t", "⇥")


def _quoted(token: str) -> str:
    return f"'{_visible(token)}'"
