"""Decoding token by token says what the full forward says; sampling does what its words mean; text is never broken."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from shards.errors import UserError
from shards.job import silent
from student_train.config import CellConfig, EncoderConfig, GenerateConfig, GenerateJob, StudentConfig
from student_train.generate import generate_ids, generate_text, pick, run
from student_train.model.files import save_model
from student_train.model.lm import Student
from student_train.model.tokenizer import StudentTokenizer

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GREEDY = GenerateConfig(max_new_tokens=12, temperature=0)


def make_student(vocab, prompt_runs=False):
    torch.manual_seed(3)
    config = StudentConfig(
        hidden_size=32,
        encoder=EncoderConfig(layers=1, heads=2, window=5),
        blocks=1,
        cell=CellConfig(units=32),
        prompt_runs=prompt_runs,
    )
    student = Student(config, vocab, vocab + 3).eval()
    torch.nn.init.normal_(student.norm.weight)  # else a tied table repeats its input
    return student


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A student and a byte-level tokenizer (one token a byte) with a chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|im_end|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|endoftext|>"]})
    tokenizer.chat_template = TEMPLATE
    path = tmp_path_factory.mktemp("student")
    tokenizer.save_pretrained(path / "tokenizer")
    save_model(path / "model", make_student(len(tokenizer)), path / "tokenizer", {})
    return path / "model"


def job(folder, prompt, chat=False, **sampling):
    return GenerateJob(generate=GenerateConfig(**sampling), model=folder, prompt=prompt, chat=chat)


@torch.no_grad()
@pytest.mark.parametrize("as_run", [False, True])
def test_greedy_decoding_picks_what_the_full_forward_picks(as_run):
    student = make_student(60, prompt_runs=as_run)
    prompt = [5, 9, 2, 44, 17, 8, 3]
    new = list(generate_ids(student, prompt, GREEDY, prompt_is_run=as_run))
    assert len(new) == 12
    ids = torch.tensor([prompt + new])
    runs = torch.full_like(ids, -1)
    runs[:, : len(prompt)] = 0
    logits = student.logits(student(ids, run_ids=runs if as_run else None)[0])
    assert logits[0, len(prompt) - 1 : -1].argmax(-1).tolist() == new


def test_generation_ends_at_a_stop_id_without_yielding_it():
    student = make_student(60)
    new = list(generate_ids(student, [5, 9], GREEDY))
    stop = new[4]
    assert list(generate_ids(student, [5, 9], GREEDY, frozenset({stop}))) == new[: new.index(stop)]


def test_equal_seeds_write_the_same_and_other_seeds_do_not():
    student = make_student(60)
    texts = [list(generate_ids(student, [1], GenerateConfig(seed=s, temperature=2.0))) for s in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]
    assert max(max(t) for t in texts) < 60


def drawn(logits, **sampling):
    random = torch.Generator().manual_seed(0)
    seen = torch.zeros(len(logits), dtype=torch.bool)
    seen[0] = True
    config = GenerateConfig(**{"temperature": 1.0, "top_p": 1.0, **sampling})
    return (
        torch.bincount(
            torch.tensor([pick(logits, config, seen, random) for _ in range(1000)]), minlength=len(logits)
        ).double()
        / 1000
    )


def test_sampling_frequencies_follow_temperature_top_k_top_p_and_penalty():
    p = torch.tensor([0.4, 0.3, 0.2, 0.1])
    logits = torch.cat([p.log() + 5, torch.tensor([-torch.inf])])
    close = {"rtol": 0, "atol": 0.05}
    torch.testing.assert_close(drawn(logits)[:4], p.double(), **close)
    torch.testing.assert_close(drawn(logits, temperature=0.5)[:4], (p**2 / (p**2).sum()).double(), **close)
    torch.testing.assert_close(drawn(logits, top_k=2)[:2], torch.tensor([4 / 7, 3 / 7]).double(), **close)
    assert drawn(logits, top_k=2)[2:].sum() == 0
    assert (drawn(logits, top_p=0.65) > 0).tolist() == [True, True, False, False, False]
    assert (drawn(logits, top_p=0.75) > 0).tolist() == [True, True, True, False, False]
    assert drawn(logits, temperature=0).argmax() == 0
    assert drawn(logits, temperature=0, repetition_penalty=1.2).argmax() == 1
    assert drawn(logits)[4] == 0


def test_a_prompt_never_yields_control_tokens_but_the_chat_template_does(folder):
    tokenizer = StudentTokenizer(folder)
    assert not set(tokenizer.plain("a<|im_end|>b")) & set(tokenizer.control.values())
    assert tokenizer.hf.decode(tokenizer.chat("hi")) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.stop_ids == {tokenizer.control["<|im_end|>"], tokenizer.control["<|endoftext|>"]}
    with pytest.raises(UserError, match=r"control token <\|im_end\|>.*remove it"):
        tokenizer.chat("a<|im_end|>b")


def test_streamed_pieces_are_whole_characters_and_join_to_the_text(folder):
    tokenizer = StudentTokenizer(folder)
    text = "né 你好 😀 end"
    ids = tokenizer.plain(text)
    assert len(ids) == len(text.encode())
    pieces = list(tokenizer.stream(ids))
    assert "".join(pieces) == text
    assert "😀" in pieces
    assert "".join(tokenizer.stream(tokenizer.plain("ok 😀")[:-1])) == "ok "


def test_the_job_streams_tokens_and_ends_with_the_result(folder):
    events = []
    run(job(folder, "Once", max_new_tokens=20, seed=4, temperature=2.0), events.append)
    *pieces, result = events
    assert {e["event"] for e in pieces} == {"token"}
    assert result["event"] == "result"
    assert "".join(e["text"] for e in pieces) == result["text"]
    assert not result["text"].endswith("\ufffd")
    assert 0 < result["tokens"] <= 20
    assert result["tokens_per_s"] > 0
    chat = []
    run(job(folder, "Once", chat=True, max_new_tokens=3), chat.append)
    assert chat[-1]["tokens"] <= 3


def test_the_helper_for_reports_writes_the_same_line_each_time(folder):
    from student_train.model.files import load_model

    student = load_model(folder)
    assert generate_text(student, folder, "The", 8) == generate_text(student, folder, "The", 8)


def test_an_empty_prompt_and_a_missing_folder_are_the_users_to_mend(folder, tmp_path):
    with pytest.raises(UserError, match="prompt: empty"):
        run(job(folder, ""), silent)
    with pytest.raises(UserError, match=r"no config.json in it"):
        run(job(tmp_path, "x"), silent)
