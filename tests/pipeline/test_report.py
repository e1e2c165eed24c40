"""The report and the end screen, from the files that training and evaluation leave."""

from __future__ import annotations

import html.parser
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.config import RunConfig
from pipeline.endscreen import figure_lines, next_steps, places, sample_lines
from pipeline.figures import figures_of, read_metrics
from pipeline.report import write_report
from pipeline.stages import Plan, plan_run
from pipeline.svg import line_chart, number, ticks

EVALUATION = {
    "student": {"kl_exact": 1.25, "kl_estimate": 1.3, "cross_entropy": 4.5, "top1_agreement": 0.25},
    "untrained": {"kl_exact": 8.0, "cross_entropy": 10.8},
    "unigram": {"kl_exact": 3.5, "cross_entropy": 6.75},
    "samples": [
        {
            "context": "It was <a> fine",
            "label": " day",
            "teacher": [[" day", 0.5], [" & night", 0.25]],
            "student": [[" day", 0.125], ["\n", 0.0625]],
        }
    ],
    "generated": {"prompt": "It was", "text": " the 日 of"},
}


def leave_results(plan: Plan) -> None:
    for student in plan.students.values():
        (student.folder / "eval").mkdir(parents=True)
        (student.folder / "train").mkdir()
        (student.folder / "eval" / "eval.json").write_text(json.dumps(EVALUATION))
        lines = [
            json.dumps(
                {"step": s, "loss": 9 * math.exp(-s / 30) + 1, "hybrid": 8.0 / s, "lr": 1e-3, "tokens_per_s": 900}
            )
            for s in range(1, 101)
        ]
        (student.folder / "train" / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 1')


@pytest.fixture
def plan(make_config: Callable[..., RunConfig]) -> Plan:
    plan = plan_run(make_config())
    leave_results(plan)
    return plan


class Page(html.parser.HTMLParser):
    """Collects what a browser would fetch, and checks that tags are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [v for k, v in attrs if k in ("src", "href") and v]
        if tag not in ("meta", "line", "polyline", "circle", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_report_is_one_page_that_fetches_nothing(plan: Plan, tmp_path: Path) -> None:
    write_report(plan, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    page = Page(text)
    assert page.fetched == []
    assert page.open == []
    assert "url(" not in text
    assert "<script" not in text
    assert "prefers-color-scheme: dark" in text


def test_the_report_shows_figures_curves_samples_and_settings(plan: Plan, tmp_path: Path) -> None:
    write_report(plan, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    for wanted in ("1.25", "10.8", "6.75", "untrained", "unigram", "learning rate", "tokens per second"):
        assert wanted in text, wanted
    assert text.count("<polyline") == 4
    assert "It was &lt;a&gt; fine" in text, "text of the corpus is never markup"
    assert "the 日 of" in text


def test_a_report_without_any_result_is_still_a_page(make_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    write_report(plan_run(make_config()), tmp_path / "report.html")
    assert "Held-out figures" not in (tmp_path / "report.html").read_text()


def test_variants_stand_side_by_side_and_baselines_once(make_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    plan = plan_run(make_config(variants={"soft": {}, "hard": {"train.loss.hybrid": 0}}))
    leave_results(plan)
    lines = figure_lines(figures_of(plan))
    assert [line.split()[0] for line in lines[2:]] == ["soft", "hard", "untrained", "unigram"]
    write_report(plan, tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text().count("<tr class") >= 4


def test_the_end_screen_says_where_things_are_and_what_the_student_says(plan: Plan, tmp_path: Path) -> None:
    assert places(plan)["shards"] == tmp_path / "dumps" / "r" / "shards"
    assert set(places(plan)) == {"shards", "student", "export", "report"}
    figures = figures_of(plan)
    assert [line.split() for line in figure_lines(figures)[2:]] == [
        ["student", "1.250", "4.500"],
        ["untrained", "8.000", "10.800"],
        ["unigram", "3.500", "6.750"],
    ]
    lines = sample_lines(figures[0])
    assert "It was <a> fine → ' day'" in lines
    assert "  teacher  ' day' 0.50  ' & night' 0.25" in lines
    assert "  student  ' day' 0.12  '⏎' 0.06" in lines
    assert lines[-1] == "the student writes: It was| the 日 of"
    assert any("generate --run r" in step for step in next_steps(plan, tmp_path / "config.yaml"))


def test_metrics_survive_a_torn_line_and_repeated_steps(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 5}\n{"step": 2, "loss": 4}\n{"step": 2, "loss": 3}\n{"step": 3, "lo')
    assert read_metrics(path) == [{"step": 1, "loss": 5}, {"step": 2, "loss": 3}]
    assert read_metrics(tmp_path / "none") == []


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 10, [0, 2, 4, 6, 8, 10]), (0.0, 0.9, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]), (3, 3, None), (-1, 1, None)],
)
def test_ticks_are_round_and_span_the_range(low: float, high: float, expected: list[float] | None) -> None:
    found = ticks(low, high)
    if expected is not None:
        assert found == pytest.approx(expected)
    assert found[0] <= low
    assert found[-1] >= high
    assert 2 <= len(found) <= 8


def test_a_chart_leaves_out_what_is_not_finite_and_is_nothing_without_points() -> None:
    chart = line_chart([("loss", [(1, 2.0), (2, math.nan), (3, 1.0)])], "step", "loss")
    assert chart.count(",") >= 2
    assert "nan" not in chart
    assert line_chart([("loss", [(1, math.inf)])], "step", "loss") == ""


@pytest.mark.parametrize(("value", "text"), [(12_000, "12,000"), (0.00125, "0.00125"), (0, "0"), (3.14159, "3.142")])
def test_numbers_are_short(value: float, text: str) -> None:
    assert number(value) == text
