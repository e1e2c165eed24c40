"""What the whole student may and may not see, and that its state really is all it remembers."""

import pytest
import torch

from student_train.config import CellConfig, EncoderConfig, StudentConfig
from student_train.model.lm import Student
from student_train.model.state import State

VOCAB, ROWS = 50, 56


def make(**settings):
    torch.manual_seed(0)
    config = {
        "hidden_size": 32,
        "encoder": EncoderConfig(layers=2, heads=2, window=6),
        "blocks": 2,
        "cell": CellConfig(units=40, sweeps=12),
        **settings,
    }
    student = Student(StudentConfig(**config), VOCAB, ROWS).eval()
    with torch.no_grad():  # strong enough that every path shows
        for name, p in student.named_parameters():
            if name.endswith("raw_capacitance"):
                p.uniform_(-1.0, 6.0)
    return student


@pytest.fixture(scope="module")
def student():
    return make()


def tokens(B, T, seed=1):
    return torch.randint(0, VOCAB, (B, T), generator=torch.Generator().manual_seed(seed))


def starts(B, T, *where):
    reset = torch.zeros(B, T, dtype=torch.bool)
    reset[:, 0] = True
    for b, t in where:
        reset[b, t] = True
    return reset


@torch.no_grad()
def test_changing_a_token_changes_no_earlier_logit_by_one_bit(student):
    ids, reset = tokens(3, 40), starts(3, 40, (1, 9))
    logits = student.logits(student(ids, reset=reset)[0])
    for t in (1, 20, 39):
        other = ids.clone()
        other[:, t] = (other[:, t] + 1) % VOCAB
        changed = student.logits(student(other, reset=reset)[0])
        assert torch.equal(changed[:, :t], logits[:, :t]), t
        assert not torch.equal(changed[:, t], logits[:, t])


@torch.no_grad()
def test_logits_of_a_row_do_not_depend_on_the_other_rows(student):
    ids = tokens(3, 24)
    alone = tokens(3, 24, seed=2)
    alone[1] = ids[1]
    assert torch.equal(student(ids)[0][1], student(alone)[0][1])


@torch.no_grad()
def test_packed_segments_equal_the_same_segments_alone(student):
    ids = tokens(1, 30)
    packed, _ = student(ids, reset=starts(1, 30, (0, 4), (0, 17)))
    for begin, end in ((0, 4), (4, 17), (17, 30)):
        alone, _ = student(ids[:, begin:end])
        torch.testing.assert_close(packed[:, begin:end], alone, rtol=0, atol=5e-6)


@torch.no_grad()
def test_nothing_of_an_earlier_segment_reaches_a_later_one(student):
    ids, reset = tokens(2, 30), starts(2, 30, (0, 12), (1, 12))
    hidden, state = student(ids, reset=reset)
    other = ids.clone()
    other[:, :12] = (other[:, :12] + 7) % VOCAB
    hidden2, state2 = student(other, reset=reset)
    assert torch.equal(hidden[:, 12:], hidden2[:, 12:])
    following = tokens(2, 5, seed=3)
    assert torch.equal(student(following, state=state)[0], student(following, state=state2)[0])


@torch.no_grad()
@pytest.mark.parametrize("chunks", [[1] * 20, [7, 1, 12], [19, 1], [3, 17]])
def test_any_cut_into_chunks_with_a_carried_state_equals_the_whole(student, chunks):
    ids, reset = tokens(2, 20), starts(2, 20, (0, 8), (1, 19))
    whole, end = student(ids, reset=reset)
    state, parts, at = student.init_state(2), [], 0
    for n in chunks:
        hidden, state = student(ids[:, at : at + n], reset=reset[:, at : at + n], state=state)
        parts.append(hidden)
        at += n
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=1e-5)
    following = tokens(2, 4, seed=5)
    torch.testing.assert_close(student(following, state=state)[0], student(following, state=end)[0], rtol=0, atol=1e-5)


@torch.no_grad()
def test_right_padding_is_invisible_and_the_state_is_the_one_at_the_last_real_token(student):
    ids, lengths = tokens(3, 20), torch.tensor([20, 9, 0])
    before = student(tokens(3, 11, seed=4))[1]
    hidden, state = student(ids, lengths=lengths, state=before)
    alone, alone_state = student(ids[1:2, :9], state=before.select(torch.tensor([1])))
    torch.testing.assert_close(hidden[1:2, :9], alone, rtol=0, atol=5e-6)
    following = tokens(3, 3, seed=5)
    for row, expected in ((1, alone_state), (2, before.select(torch.tensor([2])))):
        pick = torch.tensor([row])
        torch.testing.assert_close(
            student(following[pick], state=state.select(pick))[0],
            student(following[pick], state=expected)[0],
            rtol=0,
            atol=1e-5,
        )


@torch.no_grad()
def test_attention_reaches_exactly_window_minus_one_tokens_back():
    student = make(encoder=EncoderConfig(layers=1, heads=2, window=6))
    from student_train.model.attention import look
    from student_train.model.segments import find_segments

    ids = tokens(1, 15)
    x = student.embedding(ids)
    segments = find_segments(15, None, None, None)

    def encode(x):
        return student.encoder[0](x, look(x, 16, 6, segments, None), segments, None, False)[0]

    y = encode(x)
    x2 = x.clone()
    x2[:, 3] += 1
    changed = (encode(x2) != y).any(-1)[0]
    assert changed.nonzero().flatten().tolist() == [3, 4, 5, 6, 7, 8]


def run_batch():
    """A segment of 5; then a prompt run 5..13, its answer 13..18, a second run 18..22, its answer 22..26."""
    run_ids = torch.full((1, 26), -1, dtype=torch.int32)
    run_ids[0, 5:13], run_ids[0, 18:22] = 0, 1
    return tokens(1, 26), starts(1, 26, (0, 5)), run_ids


@torch.no_grad()
def test_with_prompt_runs_no_scored_logit_sees_its_label_or_anything_after():
    student = make(prompt_runs=True)
    ids, reset, run_ids = run_batch()
    hidden, _ = student(ids, reset=reset, run_ids=run_ids)
    answers = [*range(13, 18), *range(22, 26)]
    for label in answers:
        other = ids.clone()
        other[:, label:] = (other[:, label:] + 3) % VOCAB
        changed, _ = student(other, reset=reset, run_ids=run_ids)
        assert torch.equal(changed[:, label - 1], hidden[:, label - 1]), label


@torch.no_grad()
def test_with_prompt_runs_tokens_of_one_run_see_each_other_and_no_other_run_or_segment():
    student = make(prompt_runs=True, encoder=EncoderConfig(layers=1, heads=2, window=6))
    ids, reset, run_ids = run_batch()
    hidden, _ = student(ids, reset=reset, run_ids=run_ids)

    def changed_before(t):
        other = ids.clone()
        other[:, t] = (other[:, t] + 3) % VOCAB
        moved = (student(other, reset=reset, run_ids=run_ids)[0] != hidden).any(-1)[0, :t]
        return moved.nonzero().flatten().tolist()

    assert changed_before(12) == [7, 8, 9, 10, 11]  # its run, less than a window away
    assert changed_before(5) == []  # the segment before never looks ahead
    assert changed_before(18) == []  # the first run is over
    assert changed_before(20) == [18, 19]
    assert changed_before(15) == []


@torch.no_grad()
def test_a_run_prefilled_whole_then_decoded_token_by_token_equals_the_full_forward():
    student = make(prompt_runs=True)
    ids = tokens(1, 20)
    run_ids = torch.full((1, 20), -1)
    run_ids[0, :11] = 0
    whole, _ = student(ids, run_ids=run_ids)
    hidden, state = student(ids[:, :11], run_ids=run_ids[:, :11])
    parts = [hidden]
    for t in range(11, 20):
        hidden, state = student(ids[:, t : t + 1], state=state)
        parts.append(hidden)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=1e-5)


@torch.no_grad()
def test_dead_rows_have_no_probability_and_logits_are_float32(student):
    logits = student.logits(student(tokens(1, 3))[0])
    assert logits.shape == (1, 3, ROWS)
    assert logits.dtype == torch.float32
    assert torch.isneginf(logits[..., VOCAB:]).all()
    assert torch.isfinite(logits[..., :VOCAB]).all()


def test_every_parameter_gets_a_gradient_and_none_is_zero_dimensional():
    for student in (make(), make(embedding_size=8, cell=CellConfig(units=40, synapses="per_edge", unfolds=2))):
        hidden, _ = student(tokens(2, 16), reset=starts(2, 16, (0, 5)), carry=False)
        student.logits(hidden)[..., :VOCAB].log_softmax(-1)[..., 3].sum().backward()
        for name, p in student.named_parameters():
            assert p.dim() >= 1, name
            assert p.grad is not None, name
            assert torch.isfinite(p.grad).all(), name
            assert p.grad.abs().max() > 0, name


def test_the_tied_table_is_one_parameter_and_the_groups_split_all_of_them():
    student = make(embedding_size=8)
    assert student.head_weight is student.embedding.weight
    assert student.head_weight.shape == (ROWS, 8)
    decayed, free = student.decay_groups()
    assert sorted(decayed + free) == sorted(n for n, _ in student.named_parameters())
    assert "embedding.weight" in decayed
    assert "encoder.0.mixer.qkv.weight" in decayed
    assert not any(".cell." in n or "norm" in n or "bias" in n for n in decayed)


def test_without_carry_the_hidden_vectors_are_the_same_and_no_state_is_built(student):
    ids = tokens(2, 12)
    hidden, state = student(ids, carry=False)
    assert state == State(())
    assert torch.equal(hidden, student(ids)[0])


@torch.no_grad()
def test_the_state_has_a_fixed_size_and_survives_a_file(student, tmp_path):
    _, state = student(tokens(2, 9))
    _, later = student(tokens(2, 40), state=state)
    assert state.bytes_per_row == later.bytes_per_row == student.init_state(1).bytes_per_row
    state.save(tmp_path / "state.safetensors")
    again = State.load(tmp_path / "state.safetensors")
    following = tokens(2, 4, seed=9)
    assert torch.equal(student(following, state=again)[0], student(following, state=state)[0])


@torch.no_grad()
def test_bfloat16_weights_give_nearly_the_same_logits_and_keep_float32_neurons():
    student = make()
    ids = tokens(2, 20)
    exact = student.logits(student(ids)[0])[..., :VOCAB].log_softmax(-1)
    hidden, state = student.bfloat16()(ids)
    assert hidden.dtype == torch.bfloat16
    assert state.layers[-1]["neurons"].dtype == torch.float32
    rough = student.logits(hidden)[..., :VOCAB].log_softmax(-1)
    assert (rough - exact).abs().mean() < 0.05
