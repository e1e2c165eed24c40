"""An exported folder stands alone and is the student that was trained."""

import json

import pytest
import torch

from shards.errors import UserError
from shards.job import silent
from shards.stage import read_marker
from student_train.config import CellConfig, EncoderConfig, ExportConfig, ExportJob, StudentConfig
from student_train.export import run
from student_train.model.files import load_model, save_model
from student_train.model.lm import Student


@pytest.fixture
def trained(tmp_path):
    torch.manual_seed(1)
    config = StudentConfig(
        hidden_size=16, encoder=EncoderConfig(layers=1, heads=2, window=4), blocks=1, cell=CellConfig(units=24)
    )
    student = Student(config, 30, 32).eval()
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "tokenizer.json").write_text('{"made": "up"}')
    meta = {"steps": 12, "fingerprints": {"teacher": {"name": "smallteacher"}, "corpus": "c0ffee"}}
    save_model(tmp_path / "model", student, tokenizer, meta)
    (tmp_path / "eval.json").write_text(json.dumps({"student": {"kl_exact": 0.5, "cross_entropy": 3.25}}))
    return student, tmp_path


def job(root, **settings):
    return ExportJob(
        export=ExportConfig(**settings),
        model=root / "model",
        evaluation=root / "eval.json",
        output=root / "export",
        digest="d" * 64,
    )


@torch.no_grad()
def test_the_export_is_self_contained_and_equals_the_trained_student(trained):
    student, root = trained
    run(job(root), silent)
    out = root / "export"
    names = {p.name for p in out.iterdir() if not p.name.startswith(".")}
    assert names == {"README.md", "config.json", "model.safetensors", "stage.json", "tokenizer.json"}
    ids = torch.arange(20)[None]
    assert torch.equal(load_model(out)(ids)[0], student(ids)[0])
    marker = read_marker(out)
    assert marker is not None
    assert marker.done
    assert marker.summary["parameters"] == sum(p.numel() for p in student.parameters())


def test_the_card_tells_teacher_data_figures_and_licence(trained):
    _, root = trained
    run(job(root), silent)
    card = (root / "export" / "README.md").read_text()
    for words in ("smallteacher", "c0ffee", "| 0.5000 |", "| 3.2500 |", "licence", "load_model", "24 neurons"):
        assert words in card, words


def test_bfloat16_halves_the_weights_and_still_loads(trained):
    student, root = trained
    run(job(root), silent)
    full = (root / "export" / "model.safetensors").stat().st_size
    run(job(root, dtype="bfloat16"), silent)
    assert (root / "export" / "model.safetensors").stat().st_size < 0.6 * full
    loaded = load_model(root / "export").norm.weight
    assert loaded.dtype == torch.float32
    torch.testing.assert_close(loaded, student.norm.weight.detach(), rtol=1e-2, atol=0)


def test_a_missing_student_is_named(trained, tmp_path):
    _, root = trained
    with pytest.raises(UserError, match=r"no config.json in it"):
        run(job(root).model_copy(update={"model": tmp_path / "nowhere"}), silent)
