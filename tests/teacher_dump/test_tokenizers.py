"""What the corpus asks of a tokenizer: real vocabulary, fingerprint, control tokens, bytes a token."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_teacher import make_tiny_tokenizer

from shards.errors import UserError
from shards.job import silent
from teacher_dump.tokenizers import CorpusTokenizer, load_tokenizer

SAMPLE = "Été 12 345   6\n\t你好，世界 🙂 don't naïve ﬁ"


def test_the_real_qwen3_tokenizer_has_151669_tokens_and_knows_its_control_tokens(qwen3: CorpusTokenizer) -> None:
    assert qwen3.vocab_size == 151_669
    assert qwen3.separator == 151_643
    assert qwen3.prefix == []
    assert sorted(qwen3.control.values()) == list(range(151_643, 151_669))
    assert sum(qwen3.byte_lengths[qwen3.encode_plain(SAMPLE)]) == len(SAMPLE.encode())
    assert not qwen3.byte_lengths[151_643:].any()


def test_the_packaged_teacher_splits_digits_and_ends_documents_with_id_0(smollm2: CorpusTokenizer) -> None:
    assert (smollm2.vocab_size, smollm2.separator, smollm2.prefix) == (49_152, 0, [])
    assert smollm2.hf.convert_ids_to_tokens(smollm2.encode("a   2024")) == ["a", "ĠĠĠ", "2", "0", "2", "4"]
    assert sum(smollm2.byte_lengths[smollm2.encode_plain(SAMPLE)]) == len(SAMPLE.encode())


def sentencepiece_like(folder: Path) -> CorpusTokenizer:
    """A small unigram tokenizer in the manner of Llama 2: metaspace, byte fallback, bos in front."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁", "▁a", "é", "b", "<", "/", "s", ">"]
    backend = Tokenizer(models.Unigram([(p, -1.0) for p in pieces], 0, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    backend.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", bos_token="<s>").save_pretrained(folder)
    return load_tokenizer(str(folder), silent)


def test_other_families_get_eos_as_separator_their_own_prefix_and_true_byte_lengths(tmp_path: Path) -> None:
    tokenizer = sentencepiece_like(tmp_path)
    assert tokenizer.hf.convert_ids_to_tokens([tokenizer.separator, *tokenizer.prefix]) == ["</s>", "<s>"]
    ids = tokenizer.encode_plain("a aé你b")
    assert tokenizer.hf.convert_ids_to_tokens(ids) == ["▁a", "▁a", "é", "<0xE4>", "<0xBD>", "<0xA0>", "b"]
    assert tokenizer.byte_lengths[ids].tolist() == [2, 2, 2, 1, 1, 1, 1]
    assert tokenizer.byte_lengths[tokenizer.separator] == 0


def test_a_unigram_model_that_knows_a_control_tokens_text_cannot_be_tricked_either(tmp_path: Path) -> None:
    tokenizer = sentencepiece_like(tmp_path)
    assert tokenizer.separator in tokenizer.encode("a</s>b")
    assert tokenizer.separator not in tokenizer.encode_plain("a</s>b")


def test_the_fingerprint_survives_saving_and_tells_tokenizers_apart(tmp_path: Path) -> None:
    make_tiny_tokenizer(tmp_path / "a")
    first = load_tokenizer(str(tmp_path / "a"), silent)
    first.hf("padded", padding="max_length", max_length=8, truncation=True)  # leaves its settings in the backend
    first.hf.save_pretrained(tmp_path / "b")
    make_tiny_tokenizer(tmp_path / "c", vocab_size=380)
    again, other = (load_tokenizer(str(tmp_path / name), silent) for name in ("b", "c"))
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert first.template_fingerprint == again.template_fingerprint == other.template_fingerprint != ""


def test_a_missing_tokenizer_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError) as caught:
        load_tokenizer(str(tmp_path), silent)
    assert str(caught.value).startswith(f"{tmp_path}: no tokenizer could be loaded (")
    assert "prepare.tokenizer" in str(caught.value)
    assert "\n" not in str(caught.value)
