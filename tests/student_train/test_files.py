"""A saved student is the same student; a folder that is not one is refused with the remedy."""

import json

import pytest
import torch
from safetensors.torch import load_file

from shards.errors import UserError
from student_train.config import CellConfig, EncoderConfig, StudentConfig
from student_train.model.files import load_model, save_model
from student_train.model.lm import Student

CONFIG = StudentConfig(
    hidden_size=16, encoder=EncoderConfig(layers=1, heads=2, window=4), blocks=1, cell=CellConfig(units=24)
)


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(1)
    student = Student(CONFIG, 30, 32)
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "tokenizer.json").write_text("{}")
    (tokenizer / "config.json").write_text("not ours")
    save_model(tmp_path / "model", student, tokenizer, {"steps": 7})
    return student, tmp_path / "model"


@torch.no_grad()
def test_a_saved_student_loads_bit_for_bit(saved):
    student, folder = saved
    ids = torch.arange(12)[None]
    again = load_model(folder)
    assert torch.equal(again(ids)[0], student(ids)[0])
    assert not again.training


def test_the_folder_holds_each_weight_once_the_tokenizer_and_no_wiring(saved):
    student, folder = saved
    assert {p.name for p in folder.iterdir()} == {"config.json", "model.safetensors", "tokenizer.json"}
    tensors = load_file(folder / "model.safetensors")
    assert set(tensors) == {name for name, _ in student.named_parameters()}
    assert sum(t.numel() for t in tensors.values()) == sum(p.numel() for p in student.parameters())
    config = json.loads((folder / "config.json").read_text())
    assert config["student"]["cell"]["units"] == 24
    assert (config["vocab_size"], config["vocab_rows"], config["meta"]) == (30, 32, {"steps": 7})


def edit(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def test_another_wiring_than_the_one_trained_with_is_refused(saved):
    _, folder = saved
    edit(folder, wiring_digest="0" * 64)
    with pytest.raises(UserError, match=r"wiring digest 00000000 but this config samples .*train again"):
        load_model(folder)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "no config.json in it; give the `model` folder"),
        (lambda f: (f / "config.json").write_text('{"model_type": "llama"}'), "not a student of format 1.*'llama'"),
        (lambda f: edit(f, format=99), "not a student of format 1"),
        (lambda f: edit(f, student={"hidden_size": "wide"}), "student.hidden_size: .*train again"),
        (lambda f: edit(f, vocab_rows=40), "does not fit config.json .*size mismatch"),
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors: missing"),
        (lambda f: (f / "model.safetensors").write_bytes(b"x" * 100), "does not fit config.json"),
    ],
)
def test_a_broken_or_foreign_folder_is_refused_in_one_line(saved, spoil, message):
    _, folder = saved
    spoil(folder)
    with pytest.raises(UserError, match=message) as e:
        load_model(folder)
    assert "\n" not in str(e.value)
    assert str(folder) in str(e.value)
