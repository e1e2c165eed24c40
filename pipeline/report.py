"""A run as one HTML file: curves, held-out figures, samples, settings, origin. No script, no request to anywhere.

What the numbers mean is said in the page; reading them is `figures`, drawing is `svg`.
"""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shards.files import write_atomic
from student_train.config import LOSS_PARTS

from .figures import COLUMNS, Figures, Likely, figures_of, standings
from .stages import Plan
from .svg import Series, line_chart, number

_SMOOTH_OVER = 40
"""Curves with more steps than this are drawn as a running mean over a twentieth of them."""


def write_report(plan: Plan, page: Path) -> None:
    """Write the page of a run with all its variants."""
    figures = figures_of(plan)
    body = "\n".join(
        part
        for part in (
            _headline(plan, figures),
            _table(figures),
            *(_curves(f, len(figures) > 1) for f in figures),
            *(_samples(f, len(figures) > 1) for f in figures),
            _details("Settings", plan.config.model_dump(mode="json", exclude_defaults=True)),
            *(_details(f"Origin of {f.name}", f.provenance) for f in figures if f.provenance),
        )
        if part
    )
    title = f"MiniCodformer: {plan.config.name}"
    write_atomic(page, _PAGE.format(title=html.escape(title), style=_STYLE, body=body))


def _headline(plan: Plan, figures: Sequence[Figures]) -> str:
    teacher = plan.config.teacher.model_dump()
    name = html.escape(str(teacher.get("model") or teacher.get("name")))
    steps = max((f.metrics[-1]["step"] for f in figures if f.metrics), default=0)
    return (
        f"<h1>{html.escape(plan.config.name)}</h1><p>A student distilled from <b>{name}</b> in {steps:,} steps. "
        "All figures are on held-out text; logarithms are natural (nats), lower KL and cross-entropy are better.</p>"
    )


def _table(figures: Sequence[Figures]) -> str:
    """Rows: students, then what they are measured against. Columns: what the evaluation has."""
    rows = standings(figures)
    columns = [c for c in COLUMNS if any(c in values for _, _, values in rows)]
    if not rows:
        return ""
    head = "".join(f"<th>{html.escape(COLUMNS[c])}</th>" for c in columns)
    lines = [
        f'<tr class="{"ours" if ours else ""}"><th>{html.escape(label)}</th>'
        + "".join(f"<td>{_figure(values, c)}</td>" for c in columns)
        + "</tr>"
        for label, ours, values in rows
    ]
    return f"<h2>Held-out figures</h2><div class=wide><table><tr><th></th>{head}</tr>{''.join(lines)}</table></div>"


def _figure(values: dict[str, float], column: str) -> str:
    """A value, with its standard error where the evaluation gives one."""
    if column not in values:
        return "–"
    error = values.get(f"{column}_error")
    return number(values[column]) + (f" <small>± {error:.2g}</small>" if error is not None else "")


def _curves(f: Figures, named: bool) -> str:
    """Loss and its parts together, every other curve in a chart of its own."""
    if not f.metrics:
        return ""
    keys = [k for k, v in f.metrics[-1].items() if k != "step" and isinstance(v, int | float)]
    losses = [k for k in keys if k == "loss" or k in LOSS_PARTS]
    charts = [line_chart([_series(f, k) for k in losses], "step", "loss and its parts" + _smoothed(f))]
    shown = {"lr": "learning rate", "tokens_per_s": "tokens per second", "grad_norm": "gradient norm"}
    charts += [
        line_chart([_series(f, k)], "step", title + ("" if k == "lr" else _smoothed(f)))
        for k, title in shown.items()
        if k in keys
    ]
    heading = f"Training of {f.name}" if named else "Training"
    return f"<h2>{html.escape(heading)}</h2><div class=charts>{''.join(charts)}</div>"


def _series(f: Figures, key: str) -> Series:
    points = [(float(m["step"]), float(m[key])) for m in f.metrics if isinstance(m.get(key), int | float)]
    width = _window(len(points))
    if key == "lr" or width == 1:
        return key, points
    smooth = [
        (points[i][0], sum(y for _, y in points[max(0, i - width + 1) : i + 1]) / min(i + 1, width))
        for i in range(len(points))
    ]
    return key, smooth


def _window(steps: int) -> int:
    return 1 if steps <= _SMOOTH_OVER else steps // 20


def _smoothed(f: Figures) -> str:
    width = _window(len(f.metrics))
    return f" (running mean of {width} steps)" if width > 1 else ""


def _samples(f: Figures, named: bool) -> str:
    if not f.samples and not f.generated:
        return ""
    heading = f"What {f.name} says" if named else "Teacher and student on real text"
    parts = [f"<h2>{html.escape(heading)}</h2>"]
    for s in f.samples:
        parts.append(
            f"<section class=sample><p class=context>…{html.escape(s.context)}<mark>{_token(s.label)}</mark></p>"
            f"<div class=pair><div><h3>teacher</h3>{_bars(s.teacher, s.label)}</div>"
            f"<div><h3>student</h3>{_bars(s.student, s.label)}</div></div></section>"
        )
    if f.generated:
        line = f"{html.escape(f.prompt)}<b>{html.escape(f.generated)}</b>"
        parts.append(f"<h3>Generated by the student</h3><p class=context>{line}</p>")
    return "".join(parts)


def _bars(likely: Likely, label: str) -> str:
    rows = [
        f'<tr class="{"ours" if token == label else ""}"><th>{_token(token)}</th>'
        f'<td><i style="width:{max(p, 0.005) * 100:.1f}%"></i></td><td>{p:.3f}</td></tr>'
        for token, p in likely
    ]
    return f"<table class=bars>{''.join(rows)}</table>"


def _token(text: str) -> str:
    """A token with its white space made visible."""
    shown = text.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥")
    return f"<code>{html.escape(shown)}</code>"


def _details(title: str, value: dict[str, Any]) -> str:
    text = html.escape(json.dumps(value, indent=2, ensure_ascii=False))
    return f"<details><summary>{html.escape(title)}</summary><pre>{text}</pre></details>"


_STYLE = """
:root { color-scheme: light dark; --ink: #1c1f23; --dim: #68707a; --paper: #fff; --panel: #f4f6f8; --rule: #dce1e6;
  --c0: #1f6fd0; --c1: #d1591b; --c2: #2b8a4b; --c3: #8446b8; --c4: #b08a00; --c5: #c23a6b; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --dim: #98a1ab; --paper: #15181b; --panel: #1e2226;
  --rule: #343a41; --c0: #6cabff; --c1: #ff9a5c; --c2: #69cf8b; --c3: #c79bf2; --c4: #e3c04a; --c5: #f48cae; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 62rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; margin-bottom: .2rem; } h2 { font-size: 1.2rem; margin: 2rem 0 .6rem; }
h3 { font-size: .85rem; color: var(--dim); margin: .4rem 0; font-weight: 600; }
table { border-collapse: collapse; } small { color: var(--dim); font-weight: 400; } .wide { overflow-x: auto; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid var(--rule);
  font-variant-numeric: tabular-nums; }
th { font-weight: 500; color: var(--dim); } th:first-child { text-align: left; }
tr.ours > * { font-weight: 650; color: var(--ink); }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(22rem, 1fr)); gap: 1rem; }
figure { margin: 0; background: var(--panel); border-radius: .5rem; padding: .7rem; }
figcaption { font-size: .85rem; font-weight: 600; margin-bottom: .3rem; }
svg { width: 100%; height: auto; display: block; } svg text { font-size: 11px; fill: var(--dim); }
svg .grid { stroke: var(--rule); } polyline { fill: none; stroke-width: 1.6; stroke-linejoin: round; }
.key { font-weight: 400; margin-left: .6rem; white-space: nowrap; } .key::before { content: "— "; font-weight: 900; }
.c0 { stroke: var(--c0); } .c1 { stroke: var(--c1); } .c2 { stroke: var(--c2); }
.c3 { stroke: var(--c3); } .c4 { stroke: var(--c4); } .c5 { stroke: var(--c5); }
.key.c0::before { color: var(--c0); } .key.c1::before { color: var(--c1); } .key.c2::before { color: var(--c2); }
.key.c3::before { color: var(--c3); } .key.c4::before { color: var(--c4); } .key.c5::before { color: var(--c5); }
.sample { background: var(--panel); border-radius: .5rem; padding: .5rem 1rem; margin: .8rem 0; }
.context { white-space: pre-wrap; font-family: ui-serif, Georgia, serif; } mark { background: none; color: var(--c1); }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)); gap: 1.5rem; }
.bars { width: 100%; } .bars th { width: 7rem; } .bars td:nth-child(2) { width: auto; padding: 0; }
.bars td:last-child { width: 3rem; }
.bars i { display: block; height: .8rem; background: var(--c0); border-radius: 2px; }
.bars tr.ours i { background: var(--c1); }
details { margin: .6rem 0; } summary { cursor: pointer; color: var(--dim); }
pre { background: var(--panel); padding: .8rem; border-radius: .5rem; overflow-x: auto; font-size: .8rem; }
"""

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{style}</style></head>
<body>
{body}
</body></html>
"""
