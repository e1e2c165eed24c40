"""init, doctor and clean: what they write, find and remove."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_phases import FakePhases

from pipeline.clean import human, leftovers, remove
from pipeline.config import RunConfig
from pipeline.doctor import examine
from pipeline.initialise import write_config
from pipeline.load import load_config
from pipeline.progress import Screen
from pipeline.run import run_stages
from pipeline.stages import plan_run
from shards.errors import UserError
from shards.files import folder_lock


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "minicodformer"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "data" / "我的 text.txt"
    path.parent.mkdir()
    path.write_text("one\n---\ntwo\n")
    return path


def test_init_writes_a_config_that_loads_and_means_what_the_quickstart_means(tmp_path: Path, text: Path) -> None:
    write_config(tmp_path / "my run.yaml", [text])
    mine = load_config(tmp_path / "my run.yaml")
    quickstart = load_config(Path(__file__).parents[2] / "configs" / "quickstart.yaml")
    assert mine.name == "my-run"
    assert mine.prepare.input == (text,)
    assert (mine.train, mine.dump, mine.teacher) == (quickstart.train, quickstart.dump, quickstart.teacher)


def test_init_explains_every_setting_that_the_models_explain(tmp_path: Path, text: Path) -> None:
    write_config(tmp_path / "my.yaml", [text], name="named")
    lines = (tmp_path / "my.yaml").read_text().splitlines()
    assert "name: named" in lines
    at = next(i for i, line in enumerate(lines) if line.strip().startswith("batch_tokens:"))
    assert lines[at - 1].strip().startswith("#")
    assert any("Time box" in line for line in lines)


def test_init_never_overwrites_and_names_what_is_missing(tmp_path: Path, text: Path) -> None:
    (tmp_path / "my.yaml").write_text("mine")
    with pytest.raises(UserError, match=r"my\.yaml: exists"):
        write_config(tmp_path / "my.yaml", [text])
    assert (tmp_path / "my.yaml").read_text() == "mine"
    with pytest.raises(UserError, match=r"nowhere\.txt: no such file"):
        write_config(tmp_path / "other.yaml", [tmp_path / "nowhere.txt"])
    with pytest.raises(UserError, match="there is no folder"):
        write_config(tmp_path / "none" / "my.yaml", [text])
    assert not (tmp_path / "other.yaml").exists()


def test_clean_finds_caches_and_earlier_results_and_leaves_current_ones(
    make_config: Callable[..., RunConfig], fake_phases: FakePhases, screen: Screen, cache: Path
) -> None:
    root = fake_phases.root
    for override in ("train.seed=0", "train.seed=1"):
        plan = plan_run(make_config(override))
        run_stages(plan, plan.stages, screen)
    (cache / "teachers" / "smol-1").mkdir(parents=True)
    (cache / "teachers" / "smol-1" / "model.safetensors").write_bytes(bytes(1500))
    (cache / "test-assets").mkdir()
    found = leftovers(root)
    assert [item.what for item in found[:2]] == ["converted teacher", "cache"]
    assert found[0].num_bytes == 1500
    assert sorted(item.path.name.split(".")[0] for item in found[2:]) == ["eval", "export", "report", "train"]
    for item in found:
        remove(item)
    assert leftovers(root) == []
    run_stages(plan, plan.stages, screen)
    assert all(stage.is_done() for stage in plan.stages)


def test_clean_refuses_what_a_live_process_writes(tmp_path: Path, cache: Path) -> None:
    teacher = cache / "teachers" / "smol-1"
    teacher.mkdir(parents=True)
    (item,) = leftovers(tmp_path)
    with (
        folder_lock(cache / "teachers" / ".locks" / "smol-1"),
        pytest.raises(UserError, match=f"process {os.getpid()}"),
    ):
        remove(item)
    assert teacher.exists()


@pytest.mark.parametrize(
    ("size", "shown"), [(999, "999 B"), (1500, "1.5 kB"), (2_500_000, "2.5 MB"), (7e12, "7000.0 GB")]
)
def test_sizes_read_well(size: int, shown: str) -> None:
    assert human(size) == shown


def test_doctor_finds_this_environment_in_order(tmp_path: Path, cache: Path) -> None:
    findings = {f.what: f for f in examine(tmp_path)}
    assert findings["package names"].state == "ok", findings["package names"]
    assert findings["train (phase two)"].state == "ok"
    assert "deepspeed 0.19.8" in findings["train (phase two)"].found
    assert findings["converted teachers"].state == "note"


def test_doctor_names_a_foreign_package_and_the_command_that_removes_it(tmp_path: Path) -> None:
    """A planted distribution that also brings a package called `shards`."""
    info = tmp_path / "stranger-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1.0\n")
    (info / "top_level.txt").write_text("shards\n")
    (info / "RECORD").write_text("")
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "__init__.py").write_text("")
    tree = Path(__file__).parents[2]
    # Ours comes first on the path here, so the names still resolve; the double ownership is what doctor must see.
    env = os.environ | {"PYTHONPATH": f"{tree}{os.pathsep}{tmp_path}"}
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "doctor"],
        env=env,
        cwd=tmp_path / "shards",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout
    assert "missing  package names: package 'shards' is also installed by stranger" in done.stdout
    assert "pip uninstall stranger" in done.stdout


def test_a_foreign_package_that_wins_stops_every_command(tmp_path: Path) -> None:
    (tmp_path / "teacher_dump").mkdir()
    (tmp_path / "teacher_dump" / "__init__.py").write_text("")
    code = "from pipeline.names import foreign_names; print(foreign_names())"
    tree = Path(__file__).parents[2]
    env = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{tree}", "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert "package 'teacher_dump' resolves to" in done.stdout, done.stderr
