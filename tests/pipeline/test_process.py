"""A phase never outlives its conductor, and its events and its end are told right."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.process import Outcome, StopSignals, parse_event, run_phase, tail

CONDUCTOR = """
import os, sys
from pathlib import Path
from pipeline.process import StopSignals, run_phase
with StopSignals().caught() as stop:
    command = [sys.executable, "-c", sys.argv[1]]
    outcome = run_phase(command, os.environ, Path(sys.argv[2]), print, lambda: None, stop)
print(outcome, flush=True)
"""
WRITER = """
import pathlib, signal, sys, time
def stop(*_):
    print("stopping", file=sys.stderr, flush=True)
    sys.exit(3)
signal.signal(signal.SIGTERM, stop)
place = pathlib.Path(PLACE)
while True:
    with place.open("a") as f:
        f.write("x")
    time.sleep(0.01)
"""


def phase(script: str, log: Path, stop: StopSignals | None = None) -> tuple[Outcome, list[dict[str, Any]]]:
    events: list[dict[str, Any]] = []
    command = [sys.executable, "-c", textwrap.dedent(script)]
    outcome = run_phase(command, os.environ, log, lambda e: events.append(dict(e)), lambda: None, stop or StopSignals())
    return outcome, events


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)


@pytest.fixture
def conductor(tmp_path: Path):
    """Starts a conductor in its own process over a phase script; kills what is left at the end."""
    started: list[psutil.Popen] = []

    def start(script: str) -> psutil.Popen:
        command = [sys.executable, "-c", CONDUCTOR, script, str(tmp_path / "phase.log")]
        process = psutil.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stdout.close()


def test_events_reach_the_conductor_and_free_text_the_log(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "phase.log"
    script = """
    import sys
    print('{"event": "note", "text": "hello"}')
    print("chatter"); print('{"no": "event"}'); print("{broken")
    print("to stderr", file=sys.stderr)
    sys.stdout.write('{"event": "note", "text": "without newline"}')
    """
    outcome, events = phase(script, log)
    assert outcome == Outcome(0)
    assert [e["text"] for e in events] == ["hello", "without newline"]
    assert sorted(log.read_text().splitlines()) == ["chatter", "to stderr", '{"no": "event"}', "{broken"]


def test_an_event_is_a_json_object_with_a_key_event() -> None:
    assert parse_event(b'{"event": "note"}') == {"event": "note"}
    assert [parse_event(line) for line in (b"text", b"{}", b"[1]", b"{broken", b'{"a": 1}')] == [None] * 5


@pytest.mark.parametrize(("script", "code"), [("raise SystemExit(7)", 7), ("import os; os.kill(os.getpid(), 9)", -9)])
def test_the_exit_code_is_the_phases_own(tmp_path: Path, script: str, code: int) -> None:
    assert phase(script, tmp_path / "log")[0] == Outcome(code)


def test_a_grandchild_that_keeps_the_pipe_open_does_not_hang_us_and_is_ended(tmp_path: Path) -> None:
    script = f"""
    import subprocess, sys, pathlib
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    pathlib.Path({str(tmp_path / "pid")!r}).write_text(str(child.pid))
    """
    outcome, _ = phase(script, tmp_path / "log")
    assert outcome == Outcome(0)
    pid = int((tmp_path / "pid").read_text())
    wait_for(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)


def test_killing_the_conductor_ends_the_phase(conductor, tmp_path: Path) -> None:
    place = tmp_path / "written"
    process = conductor(WRITER.replace("PLACE", repr(str(place))))
    wait_for(place.exists)
    children = process.children(recursive=True)
    process.send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []
    size = place.stat().st_size
    time.sleep(0.2)
    assert place.stat().st_size == size


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_the_phase_and_is_reported(conductor, tmp_path: Path, number: signal.Signals) -> None:
    place = tmp_path / "written"
    process = conductor(WRITER.replace("PLACE", repr(str(place))))
    wait_for(place.exists)
    process.send_signal(number)
    said = process.communicate(timeout=30)[0]
    assert f"Outcome(code=3, interrupted=<Signals.{number.name}: {int(number)}>)" in said
    assert tail(tmp_path / "phase.log") == "stopping", "the phase got SIGTERM and ended in its own way"


def test_a_second_signal_kills_a_phase_that_does_not_listen(conductor, tmp_path: Path) -> None:
    place = tmp_path / "written"
    script = WRITER.replace("PLACE", repr(str(place))).replace("sys.exit(3)", "pass")
    process = conductor(script)
    wait_for(place.exists)
    process.send_signal(signal.SIGINT)
    wait_for(lambda: "stopping" in tail(tmp_path / "phase.log"))
    process.send_signal(signal.SIGINT)
    assert "Outcome(code=-9" in process.communicate(timeout=30)[0]


def test_tail_gives_the_last_lines_and_nothing_for_no_file(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("\n".join(map(str, range(50))) + "\n\n")
    assert tail(tmp_path / "log", 3) == "47\n48\n49"
    assert tail(tmp_path / "none") == ""
