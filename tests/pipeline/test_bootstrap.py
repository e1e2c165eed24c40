"""Set-up of a clone: complete means stamped; whatever interrupts it, the same start mends it. pip is a stub here."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

TREE = Path(__file__).parents[2]
PYPROJECT = '[project]\nname = "x"\n'

FAKE_PIP = '''
"""Counts its calls; waits or fails when told so by a file."""
import os, pathlib, sys, time
here = pathlib.Path(__file__).parents[2]
if "install" in sys.argv:
    with (here / "pip_calls").open("a") as f:
        f.write(" ".join(sys.argv[1:]) + "\\n")
    print("Collecting torch")
    print("  Downloading /somewhere/torch-2.whl (200.0 MB)", flush=True)
    if (here / "pip_waits").exists():
        (here / "pip_pid").write_text(str(os.getpid()))
        time.sleep(60)
    if (here / "pip_fails").exists():
        print("ERROR: no route to anywhere")
        sys.exit(1)
elif "config" not in sys.argv:
    print("pip 99")
'''


@dataclass
class Clone:
    """A clone with only what set-up touches."""

    root: Path

    def environment(self, **extra: str) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("PIP_")}
        return kept | {"PYTHONPATH": str(self.root / "stubs")} | extra

    def command(self) -> list[str]:
        return [sys.executable, str(self.root / "pipeline" / "bootstrap.py")]

    def set_up(self, **extra: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(), env=self.environment(**extra), capture_output=True, text=True, timeout=100, check=False
        )

    def pip_calls(self) -> int:
        path = self.root / "pip_calls"
        return len(path.read_text().splitlines()) if path.exists() else 0

    @property
    def stamp(self) -> Path:
        return self.root / ".venv" / "complete.json"


@pytest.fixture(scope="module")
def ready_clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone with a `.venv` in it, made once: the other tests begin from copies of its files."""
    root = tmp_path_factory.mktemp("ready")
    (root / "pipeline").mkdir()
    shutil.copy(TREE / "pipeline" / "bootstrap.py", root / "pipeline")
    (root / "stubs" / "pip").mkdir(parents=True)
    (root / "stubs" / "pip" / "__init__.py").touch()
    (root / "stubs" / "pip" / "__main__.py").write_text(FAKE_PIP)
    (root / "pyproject.toml").write_text(PYPROJECT)
    # Without pip it takes a moment instead of seconds, and pip is a stub anyway.
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(root / ".venv")], check=True)
    return root


@pytest.fixture
def clone(ready_clone: Path) -> Clone:
    """The module's clone (a venv takes a while to make), reset but for the folder `.venv` itself."""
    for name in ("pip_calls", "pip_waits", "pip_fails", "pip_pid"):
        (ready_clone / name).unlink(missing_ok=True)
    (ready_clone / "pyproject.toml").write_text(PYPROJECT)
    clone = Clone(ready_clone)
    clone.stamp.unlink(missing_ok=True)
    return clone


def test_it_states_the_cost_installs_everything_once_and_is_then_silent(clone: Clone) -> None:
    first = clone.set_up()
    assert first.returncode == 0, first.stderr
    assert first.stdout.index("GB to fetch") < first.stdout.index("set-up complete")
    assert "[teacher,train,serve,dev]" in (clone.root / "pip_calls").read_text()
    assert json.loads(clone.stamp.read_text())["python"] == f"{sys.version_info[0]}.{sys.version_info[1]}"
    again = clone.set_up()
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    assert clone.pip_calls() == 1


def test_a_changed_pyproject_installs_again(clone: Clone) -> None:
    clone.set_up()
    (clone.root / "pyproject.toml").write_text(PYPROJECT + "# changed\n")
    assert clone.set_up().returncode == 0
    assert clone.pip_calls() == 2


def test_a_failing_pip_shows_its_end_and_the_next_start_mends_it(clone: Clone) -> None:
    (clone.root / "pip_fails").touch()
    failed = clone.set_up()
    assert failed.returncode == 1
    assert "pip failed (exit code 1)" in failed.stderr
    assert "no route to anywhere" in failed.stderr
    assert str(clone.root / ".venv" / "install.log") in failed.stderr
    assert not clone.stamp.exists()
    (clone.root / "pip_fails").unlink()
    assert clone.set_up().returncode == 0
    assert clone.stamp.exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_interrupted_in_pip_it_leaves_no_stamp_and_the_next_start_finishes(
    clone: Clone, number: signal.Signals, code: int
) -> None:
    (clone.root / "pip_waits").touch()
    process = subprocess.Popen(
        clone.command(), env=clone.environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    wait_for(clone.root / "pip_pid")
    process.send_signal(number)
    said = process.communicate(timeout=30)[0]
    assert process.returncode == code
    assert "Traceback" not in said
    assert not clone.stamp.exists()
    if number is signal.SIGKILL:
        os.kill(int((clone.root / "pip_pid").read_text()), signal.SIGKILL)
    (clone.root / "pip_waits").unlink()
    assert clone.set_up().returncode == 0
    assert clone.stamp.exists()


def test_a_package_torn_by_an_interruption_is_forgotten_so_that_pip_installs_it_again(clone: Clone) -> None:
    clone.set_up()
    (site,) = (clone.root / ".venv").glob("lib/python*/site-packages")
    for name in ("torn-1.dist-info", "whole-1.dist-info"):
        (site / name).mkdir(exist_ok=True)
        (site / name / "METADATA").touch()
    (site / "whole-1.dist-info" / "RECORD").touch()
    clone.stamp.unlink()
    assert clone.set_up().returncode == 0
    assert not (site / "torn-1.dist-info").exists()
    assert (site / "whole-1.dist-info").exists()


def test_a_broken_interpreter_is_replaced(clone: Clone) -> None:
    clone.set_up()
    python = clone.root / ".venv" / "bin" / "python"
    python.unlink()
    python.symlink_to("/nowhere/python")
    made_again = clone.set_up()
    assert made_again.returncode == 0, made_again.stderr
    assert "making" in made_again.stdout
    assert python.resolve().exists()


def test_a_second_start_waits_for_the_first(clone: Clone) -> None:
    import fcntl

    clone.set_up()
    clone.stamp.unlink()
    with (clone.root / "pyproject.toml").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = subprocess.Popen(clone.command(), env=clone.environment(), stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert "waiting for it" in process.stdout.readline()
    process.communicate(timeout=30)
    assert process.returncode == 0


def test_without_a_gpu_driver_it_warns_that_torch_carries_cuda_unless_pip_is_pointed_elsewhere(
    clone: Clone, tmp_path: Path
) -> None:
    if shutil.which("nvidia-smi") or Path("/proc/driver/nvidia").exists() or not sys.platform.startswith("linux"):
        pytest.skip("this machine has a GPU driver, or is no Linux")
    warned = clone.set_up(PIP_CONFIG_FILE=os.devnull)
    assert "CUDA" in warned.stdout
    assert "PIP_FIND_LINKS" in warned.stdout
    clone.stamp.unlink()
    told = clone.set_up(PIP_FIND_LINKS=str(tmp_path))
    assert "warning" not in told.stdout
    assert "PIP_FIND_LINKS" in told.stdout


def test_run_pipeline_says_in_one_line_which_python_it_needs(tmp_path: Path) -> None:
    """With a PATH that has an old Python only."""
    old = tmp_path / "python3"
    old.write_text('#!/bin/sh\ncase "$1" in --version) echo "Python 3.8.10";; *) exit 1;; esac\n')
    old.chmod(0o755)
    for tool in ("bash", "env", "dirname"):
        (tmp_path / tool).symlink_to(str(shutil.which(tool)))
    done = subprocess.run(
        [str(TREE / "run_pipeline.sh")], env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: Python 3.11 or newer is needed, found Python 3.8.10;")
    assert done.stderr.count("\n") == 1


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists() or not path.read_text():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.05)
