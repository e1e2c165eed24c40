"""A random teacher of a few thousand weights, for tests only: real transformers and tokenizer files, no meaning.

Its head is scaled up so that distributions are peaked, and its padded vocabulary rows (rows without a token) carry
as much weight as the real ones, so that forgetting to mask them shows.

As a script: `python tests/tiny_teacher.py FOLDER`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

# Rendering a longer conversation only appends: every prefix of messages renders to a prefix of the text.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

_TRAINING_LINES = (
    "The quick brown fox jumps over the lazy dog, and the dog does not mind.",
    "It is a truth universally acknowledged,",
    "that a single man in possession of a good fortune must be in want of a wife.",
    "system user assistant: what is the capital of the country? The capital is on the river.",
    "0 1 2 3 4 5 6 7 8 9 10 11 12 2024",
    "你好，今天天气怎么样？今天天气很好。学而时习之，不亦说乎？",
)


def make_tiny_tokenizer(folder: Path, vocab_size: int = 384) -> int:
    """Train and save a byte-level BPE tokenizer with ChatML template; returns its number of entries."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_TRAINING_LINES, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=["<|im_start|>"],
        chat_template=CHAT_TEMPLATE,
        model_max_length=2048,
    )
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


def make_tiny_teacher(
    folder: Path,
    vocab_rows: int | None = None,
    tokenizer_folder: Path | None = None,
    *,
    architecture: Literal["llama", "qwen3"] = "llama",
    tied: bool = False,
    seed: int = 0,
) -> Path:
    """Write a random model (2 layers, hidden 32) and its tokenizer into `folder`.

    Args:
        folder: made if missing.
        vocab_rows: rows of the embedding table; default: the tokenizer's entries plus at least 7 dead rows.
        tokenizer_folder: take this tokenizer instead of training a small one.
        architecture: the transformers class.
        tied: share embedding and head.
        seed: of the weights; the caller's random state is left alone.
    """
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if tokenizer_folder is None:
        entries = make_tiny_tokenizer(folder)
    else:
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
        tokenizer.save_pretrained(folder)
        entries = len(tokenizer)
    shape: dict[str, Any] = {
        "vocab_size": vocab_rows or -(-(entries + 7) // 16) * 16,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "initializer_range": 0.3,
        "tie_word_embeddings": tied,
        "bos_token_id": None,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if architecture == "llama":
            model = LlamaForCausalLM(LlamaConfig(**shape))
        else:
            model = Qwen3ForCausalLM(Qwen3Config(**shape, head_dim=8))
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(2.0)
    model.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    print(make_tiny_teacher(Path(sys.argv[1])))
