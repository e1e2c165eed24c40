"""Configuration files: what loads, what is refused, and that the line says where and how to mend it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from pipeline.load import load_config, parse_overrides, variant_config
from pipeline.yaml12 import parse_yaml
from shards.errors import UserError

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


def complaint(tmp_path: Path, text: str, *overrides: str) -> str:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_config(path, overrides)
    return str(caught.value).replace(f"{tmp_path}/", "")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_shipped_config_loads(path: Path) -> None:
    assert load_config(path).name == path.stem


@pytest.mark.parametrize("section", ["", "teacher", "prepare", "dump", "train", "train.student.cell", "eval", "export"])
@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_an_extra_key_in_a_shipped_config_is_refused_with_its_path(path: Path, section: str) -> None:
    key = f"{section}.sead" if section else "sead"
    with pytest.raises(UserError) as caught:
        load_config(path, [f"{key}=1"])
    assert str(caught.value).startswith(f"command line: {key}: not a field")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: a\ntrain: {bacth_size: 3}", "x.yaml: train.bacth_size: not a field (did you mean 'batch_size'?)"),
        ("name: a\ndump: {tail: {drawz: 3}}", "did you mean 'draws'?"),
        ("name: a\ndump: {tail: {draws: -3}}", "x.yaml: dump.tail.draws: -3 is wrong"),
        ("name: a\ndump: {tail: {draws: 3, draws_per_mass: 3}}", "fits none of {draws} | {draws_per_mass}"),
        ("name: a\ntrain: {ranks: many}", "x.yaml: train.ranks: 'many' is wrong"),
        ("name: a\nteacher: {kind: gpt}", "x.yaml: teacher: unknown kind 'gpt'; choose one of 'hf', 'packaged'"),
        ("name: a\nteacher: {kind: hf}", "x.yaml: teacher.model: missing; give it a value"),
        ("name: a\nteacher: {}", "x.yaml: teacher: needs a 'kind', one of hf, packaged"),
        ("name: a\nname: b", "x.yaml:2: not YAML: 'name' is given twice"),
        ("name: a\ntrain: no", "x.yaml: train: 'no' is wrong: input should be a mapping"),
        ("train: {}", "x.yaml: name: missing; give it a value"),
        ("name: a\ndump: {temperatures: [2.0]}", "x.yaml: dump: temperatures must start with 1.0, got [2.0]"),
        ("name: a\nprepare: {input: a.txt}", "x.yaml: prepare.input: 'a.txt' is wrong: input should be a list"),
        ("name: a\nvariants: {v: {train.loss.hybrd: 0}}", "x.yaml: variants.v: train.loss.hybrd: not a field"),
        ("name: a\nvariants: {v: {dump.seed: 1}}", "x.yaml: variants.v: dump.seed: variants share one dump"),
        ("- a", "x.yaml: holds list, not settings"),
        ("name: [a", ": not YAML: "),
    ],
)
def test_a_mistake_in_a_file_gets_one_line_with_file_path_and_remedy(tmp_path: Path, text: str, expected: str) -> None:
    said = complaint(tmp_path, text)
    assert expected in said
    assert "\n" not in said


def test_every_mistake_is_shown_not_only_the_first(tmp_path: Path) -> None:
    said = complaint(tmp_path, "name: a\ntrain: {bacth_size: 3, steps: few}\neval: {sample: 1}")
    assert [line.split(": ")[1] for line in said.splitlines()] == ["train.steps", "train.bacth_size", "eval.sample"]


def test_the_complaint_names_the_layer_that_made_the_mistake(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("name: a\ntrain: {bacth_size: 3}")
    said = complaint(tmp_path, "extends: base.yaml\nname: b", "train.stepz=1")
    assert sorted(said.splitlines()) == [
        "base.yaml: train.bacth_size: not a field (did you mean 'batch_size'?)",
        "command line: train.stepz: not a field (did you mean 'steps'?)",
    ]


def test_numbers_and_words_are_what_they_look_like() -> None:
    text = "[3e-4, 1E3, no, on, yes, 12:30, 017, 0x10, -4, 1.5, true, null, ~, 2026-11-24, .5, '3']"
    expected = [3e-4, 1e3, "no", "on", "yes", "12:30", 17, 16, -4, 1.5, True, None, None, "2026-11-24", 0.5, "3"]
    assert parse_yaml(text, "here") == expected


def test_overrides_win_over_the_file_and_the_file_over_what_it_extends(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("name: a\ntrain: {steps: 1, epochs: 2, seed: 3}")
    (tmp_path / "top.yaml").write_text("extends: base.yaml\ntrain: {steps: 10, epochs: 20}")
    train = load_config(tmp_path / "top.yaml", ["train.steps=100"]).train
    assert (train.steps, train.epochs, train.seed) == (100, 20, 3)


def test_choosing_another_member_of_a_union_replaces_the_whole_mapping(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("name: a\nteacher: {kind: hf, model: m, device_map: auto}")
    (tmp_path / "top.yaml").write_text("extends: base.yaml\nteacher: {kind: packaged}\ndump: {tail: {draws: 5}}")
    config = load_config(tmp_path / "top.yaml", ["dump.tail.draws_per_mass=7"])
    assert config.teacher.kind == "packaged"
    assert config.dump.tail.model_dump() == {"draws_per_mass": 7.0}
    kept = load_config(tmp_path / "base.yaml", ["teacher.dtype=float32"]).teacher
    assert (kept.model_dump()["model"], kept.dtype) == ("m", "float32")


def test_a_circle_of_extends_is_refused(tmp_path: Path) -> None:
    (tmp_path / "y.yaml").write_text("extends: x.yaml\nname: a")
    assert "extends itself" in complaint(tmp_path, "extends: y.yaml\nname: b")


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.yaml: no such file; see configs/"):
        load_config(tmp_path / "nowhere.yaml")


def test_toml_reads_like_yaml(tmp_path: Path) -> None:
    (tmp_path / "t.toml").write_text('name = "t"\n[train]\nsteps = 7\n')
    assert load_config(tmp_path / "t.toml").train.steps == 7
    (tmp_path / "bad.toml").write_text("name = \n")
    with pytest.raises(UserError, match=r"bad\.toml: not TOML"):
        load_config(tmp_path / "bad.toml")


def test_paths_beside_the_file_win_and_others_stay_for_the_working_directory(tmp_path: Path) -> None:
    (tmp_path / "here.txt").write_text("text")
    (tmp_path / "c.yaml").write_text("name: a\nprepare: {input: [here.txt, elsewhere.txt]}")
    assert load_config(tmp_path / "c.yaml").prepare.input == (tmp_path / "here.txt", Path("elsewhere.txt"))


@pytest.mark.parametrize("text", ["train.steps", "=3", "train..steps=1", "train.steps =1"])
def test_what_is_no_override_is_refused_by_value(text: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_overrides([text])
    assert repr(text) in str(caught.value)


def test_a_variant_is_a_run_of_its_own_over_the_same_dump(tmp_path: Path) -> None:
    tree = {"name": "base", "variants": {"hard": {"train.loss.hybrid": 0, "train.loss.cross_entropy": 1}}}
    (tmp_path / "v.yaml").write_text(yaml.safe_dump(tree))
    config = load_config(tmp_path / "v.yaml")
    hard = variant_config(config, "hard")
    assert (hard.name, hard.dump_name, hard.variants) == ("base/hard", "base", {})
    assert (hard.train.loss.hybrid, hard.train.loss.cross_entropy) == (0, 1)
    assert hard.dump == config.dump
