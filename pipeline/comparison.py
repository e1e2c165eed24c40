"""A sweep's students side by side: figures as mean and spread over seeds, and one chart of what they all report.

Losses of different kinds are never put on one scale; the cross-entropy to the text is the same measure for all.
"""

from __future__ import annotations

import html
import statistics
from collections.abc import Mapping, Sequence

from .figures import COLUMNS, Figures
from .stages import Plan
from .svg import line_chart, number, running_mean
from .sweep import groups_of


def over_seeds(plan: Plan, figures: Sequence[Figures]) -> str:
    """Rows: what was swept, the control first. Cells: mean ± sample standard deviation over the seeds."""
    groups = _groups(plan, figures)
    rows = {name: spreads(members) for name, members in groups.items()}
    columns = [c for c in COLUMNS if any(c in row for row in rows.values())]
    if not columns:
        return ""
    head = "".join(f"<th>{html.escape(COLUMNS[c])}</th>" for c in columns)
    lines = [
        f"<tr><th>{html.escape(name)}</th><td>{_count(groups[name])}</td>"
        + "".join(f"<td>{_cell(row, c)}</td>" for c in columns)
        + "</tr>"
        for name, row in rows.items()
    ]
    return (
        "<h2>Sweep</h2><p>Mean ± standard deviation over seeds; the control learns from the text alone.</p>"
        f"<div class=wide><table><tr><th></th><th>seeds</th>{head}</tr>{''.join(lines)}</table></div>"
    )


def together(plan: Plan, figures: Sequence[Figures]) -> str:
    """The training cross-entropy of every group, averaged over its seeds step by step."""
    series = []
    for name, members in _groups(plan, figures).items():
        by_step: dict[float, list[float]] = {}
        for f in members:
            for line in f.metrics:
                if isinstance(line.get("cross_entropy"), int | float):
                    by_step.setdefault(float(line["step"]), []).append(float(line["cross_entropy"]))
        series.append((name, running_mean([(step, statistics.fmean(ys)) for step, ys in sorted(by_step.items())])))
    chart = line_chart(series, "step", "cross-entropy to the text while training")
    return f"<div class=charts>{chart}</div>" if chart else ""


def spreads(members: Sequence[Figures]) -> dict[str, tuple[float, float | None]]:
    """Figure -> (mean, standard deviation) over those students that have it; None: one student has no spread."""
    found: dict[str, tuple[float, float | None]] = {}
    for column in COLUMNS:
        values = [f.contenders["student"][column] for f in members if column in f.contenders.get("student", {})]
        if values:
            found[column] = statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None
    return found


def _groups(plan: Plan, figures: Sequence[Figures]) -> dict[str, list[Figures]]:
    if plan.config.sweep is None:
        return {}
    by_name = {f.name: f for f in figures}
    return {name: [by_name[v] for v in members] for name, members in groups_of(plan.config.sweep).items()}


def _count(members: Sequence[Figures]) -> int:
    return sum("student" in f.contenders for f in members)


def _cell(row: Mapping[str, tuple[float, float | None]], column: str) -> str:
    if column not in row:
        return "–"
    mean, spread = row[column]
    return number(mean) + ("" if spread is None else f" <small>± {spread:.2g}</small>")
