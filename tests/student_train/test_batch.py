"""Rows that are written together write what each writes alone; sampling and its report are each row's own."""

import pytest
import torch

from shards.errors import UserError
from student_train.batch import Batch, Written, held
from student_train.config import GenerateConfig
from student_train.generate import generate_batch, generate_ids
from student_train.model.files import load_model
from student_train.model.tokenizer import StudentTokenizer, TextStream
from student_train.sampling import Sampler, pick, pick_rows

PROMPTS = [[5, 9, 2], [7], [44, 17, 8, 3, 20, 21, 22, 23, 24, 25, 26, 27], [9, 9]]
GREEDY = GenerateConfig(max_new_tokens=10, temperature=0)


@pytest.fixture(scope="module")
def student(talker):
    return load_model(talker)


def test_a_batch_of_unequal_prompts_writes_what_each_prompt_writes_alone(student):
    alone = [list(generate_ids(student, p, GREEDY)) for p in PROMPTS]
    assert generate_batch(student, PROMPTS, GREEDY) == alone
    warm = [GenerateConfig(max_new_tokens=10, temperature=1.5, seed=s) for s in (3, 4, 5, 6)]
    alone = [list(generate_ids(student, p, c)) for p, c in zip(PROMPTS, warm, strict=True)]
    assert generate_batch(student, PROMPTS, warm) == alone
    assert generate_batch(student, PROMPTS[::-1], warm[::-1]) == alone[::-1]


def test_rows_may_come_and_go_between_steps(student):
    alone = [list(generate_ids(student, p, GREEDY)) for p in PROMPTS]
    batch, out = Batch(student), {}
    rows = [Written(p, GREEDY) for p in PROMPTS]
    for number in range(40):
        if number < 4:
            batch.add(rows[number])
        if number == 6:
            batch.remove(rows[1])
        for row, picked in batch.step():
            out.setdefault(row, []).append(picked.id)
    assert len(batch) == 0
    assert [out[r] for r in (rows[0], rows[2], rows[3])] == [alone[0], alone[2], alone[3]]
    assert out[rows[1]] == alone[1][: len(out[rows[1]])]
    assert 0 < len(out[rows[1]]) < 10


def test_a_long_prompt_read_in_pieces_gives_the_same_text(student):
    prompt = [(7 * i) % 250 for i in range(75)]
    whole = list(generate_ids(student, prompt, GREEDY))
    batch, new = Batch(student, prefill_tokens=16), []
    row, other = Written(prompt, GREEDY), Written([4, 5, 6], GREEDY)
    batch.add(row)
    batch.add(other)
    while len(batch):
        new += [p.id for r, p in batch.step() if r is row]
    assert new == whole


@torch.no_grad()
def test_held_synapses_change_nothing_and_are_forgotten_afterwards(student):
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    before = student(ids)[0]
    with held(student):
        assert torch.equal(student(ids)[0], before)
    cell = student.blocks[0].mixer.cell
    assert cell.sensory.held is None
    cell.sensory.raw_weight.add_(1.0)
    assert not torch.equal(student(ids)[0], before)
    cell.sensory.raw_weight.sub_(1.0)


def test_min_p_keeps_what_is_near_the_likeliest(student):
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    random = torch.Generator().manual_seed(0)
    config = GenerateConfig(temperature=1.0, top_p=1.0, min_p=0.4)
    assert {pick(logits, config, None, random) for _ in range(200)} == {0, 1}


@pytest.mark.parametrize("sampling", [{"top_p": 0.9}, {"top_k": 300, "top_p": 1.0}, {"min_p": 0.9, "top_p": 1.0}])
def test_a_flat_distribution_is_sorted_as_far_as_it_takes(sampling):
    config = GenerateConfig(temperature=1.0, **sampling)
    random = torch.Generator().manual_seed(0)
    drawn = {pick(torch.linspace(0, 0.01, 1000), config, None, random) for _ in range(3000)}
    wanted = {"top_p": 900, "top_k": 300, "min_p": 1000}[next(iter(sampling))]
    assert 0.8 * wanted < len(drawn) <= wanted + 2
    assert min(drawn) >= 1000 - wanted - 2


def test_reported_probabilities_are_the_students_own_before_temperature_and_filters():
    p = torch.tensor([[0.1, 0.6, 0.3], [0.2, 0.2, 0.6]])
    config = GenerateConfig(temperature=0)
    first, second = pick_rows(p.log() + 2, [Sampler(config, logprobs=2), Sampler(config)])
    assert first.id == 1
    assert first.logprob == pytest.approx(-0.5108, abs=1e-3)
    assert [i for i, _ in first.top] == [1, 2]
    assert first.top[1][1] == pytest.approx(-1.2040, abs=1e-3)
    assert (second.id, second.logprob, second.top) == (2, None, ())


def test_the_text_ends_before_a_stop_text_even_when_it_comes_in_parts(talker):
    tokenizer = StudentTokenizer(talker)

    def streamed(text, *stop):
        stream, pieces = TextStream(tokenizer, stop), []
        for i in tokenizer.plain(text):
            pieces.append(stream.push(i))
            if stream.stopped:
                break
        return [*pieces, stream.finish()], stream.stopped

    pieces, stopped = streamed("one ENd two END three", "END", "four")
    assert ("".join(pieces), stopped) == ("one ENd two ", True)
    pieces, stopped = streamed("one EN", "END")
    assert (pieces[-1], stopped) == ("EN", False)
    assert "".join(pieces) == "one EN"
    assert "".join(streamed("你好吗", "好")[0]) == "你"


def test_runs_of_a_conversation_are_all_but_the_answers(talker):
    tokenizer = StudentTokenizer(talker)
    said = [("user", "a"), ("assistant", "bc"), ("user", "d")]
    messages = [{"role": r, "content": c} for r, c in said]
    ids = tokenizer.conversation(messages)
    (begin, end), (again, last) = tokenizer.runs(messages, ids)
    assert (begin, last) == (0, len(ids))
    assert tokenizer.hf.decode(ids[end:again]) == "bc<|im_end|>"
    assert tokenizer.runs(messages[:1], ids[:9]) == [(0, 9)]


def test_token_bytes_are_those_of_the_text(talker):
    tokenizer = StudentTokenizer(talker)
    text = "né 你\n"
    assert b"".join(map(tokenizer.token_bytes, tokenizer.plain(text))) == text.encode()
    assert tokenizer.token_bytes(tokenizer.control["<|im_end|>"]) == b"<|im_end|>"


def test_wrong_prompts_are_the_users_to_mend(student):
    with pytest.raises(UserError, match="prompt: empty"):
        generate_batch(student, [[1], []], GREEDY)
    with pytest.raises(UserError, match="token 999"):
        generate_batch(student, [[999]], GREEDY)
    with pytest.raises(UserError, match="2 for 1 prompts"):
        generate_batch(student, [[1]], [GREEDY, GREEDY])
