"""What phase one can be told: `prepare` (corpus -> rows) and `dump` (rows -> captures).

Plain frozen pydantic models; unknown keys are refused. Nothing here imports torch, so the conductor may read it.
The phase itself is started with one *job*, a JSON file: `python -m teacher_dump job.json`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Strict(BaseModel):
    """Frozen, refuses unknown keys, field docs are the strings under the fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class HFTeacher(Strict):
    """Any causal LM that transformers can load from a local folder or the hub."""

    kind: Literal["hf"] = "hf"
    model: str
    """Local folder (with config.json and safetensors, or one GGUF file) or hub name, e.g. `Qwen/Qwen3-8B`."""
    revision: str | None = None
    """Hub revision; recorded in the manifest."""
    tokenizer: str | None = None
    """Folder or hub name of the tokenizer when it is not beside the model."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """`auto`: bfloat16 on GPUs, float32 on CPUs."""
    device_map: Literal["auto", "none"] = "none"
    """`auto`: spread one copy over all visible GPUs (accelerate); `none`: one device."""
    python: str | None = None
    """Interpreter of another environment to run the dump in; default: this one."""


class PackagedTeacher(Strict):
    """SmolLM2-135M-Instruct out of a pinned PyPI package: a real teacher that needs no model hub."""

    kind: Literal["packaged"] = "packaged"
    name: Literal["smollm2-135m-instruct"] = "smollm2-135m-instruct"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    python: str | None = None


Teacher = Annotated[HFTeacher | PackagedTeacher, Field(discriminator="kind")]


class PrepareConfig(Strict):
    """Corpus files -> tokenised, packed rows, split into train and validation before packing."""

    input: tuple[Path, ...] = ()
    """Corpus files: .jsonl, .jsonl.zst, .json (a list), .txt (documents between lines of `---`), .parquet, .arrow.

    A record is `{"text"}`, `{"prompt", "response"}`, `{"messages": [{"role", "content"}]}` or a list of utterances.
    """
    tokenizer: str | None = None
    """Folder, hub name or the name of a packaged teacher; default: the teacher's own."""
    train_size: int = Field(20_000, ge=1)
    """Samples for training, counted before packing; one sample is one record.

    A corpus with fewer samples than train_size + val_size is shared out in that proportion.
    """
    val_size: int = Field(2_000, ge=0)
    """Samples held out, counted before packing."""
    max_length: int = Field(128, ge=8)
    """Tokens in a row, at most."""
    max_tokens: int | None = Field(None, ge=16)
    """Stop packing the training rows before they pass this many tokens (a cap for quick runs); None: no cap."""
    seed: int = 0
    """Decides the split."""
    enable_thinking: bool = False
    """Passed to chat templates that know it (Qwen3)."""
    prompt_runs: bool = True
    """Record which token ranges arrive whole (prompts, user turns)."""


class TailDraws(Strict):
    """A fixed number of draws from outside the head."""

    draws: int = Field(ge=0, le=65_535)


class TailPerMass(Strict):
    """ceil(draws_per_mass * rest mass) draws: each then weighs about 1 / draws_per_mass."""

    draws_per_mass: float = Field(gt=0, le=65_535)


class DumpConfig(Strict):
    """Rows -> captures: head, tail draws and rest mass of every scored position."""

    head_size: int = Field(8, ge=0, le=65_535)
    """K: at most this many most likely ids are kept. 0: tail draws only."""
    head_mass: float = Field(0.95, gt=0.0, le=1.0)
    """Keep the shortest prefix of the K with at least this mass; 1.0: always K."""
    must_keep: tuple[int, ...] = ()
    """Ids that every head contains, e.g. an end-of-turn id."""
    tail: TailDraws | TailPerMass = TailPerMass(draws_per_mass=32)
    temperatures: tuple[float, ...] = (1.0, 2.0)
    """Temperatures whose rest mass is stored; the first is 1."""
    tail_logprobs: bool = False
    """Also store the log-probability of every drawn id (study dumps)."""
    logsumexp: bool = False
    """Also store the normaliser: raw logit = logprob + logsumexp."""
    encoding: Literal["plain", "compact"] = "plain"
    """plain: any Arrow tool computes on it; compact: about half the bytes, lossy within bounds (shards/FORMAT.md)."""
    seed: int = 0
    """Mixed into the uniforms of the tail draws."""
    rows_per_shard: int = Field(512, ge=1)
    """The unit of work, of resume and of loss when killed."""
    batch_tokens: int = Field(2_048, ge=8)
    """Tokens scored in one forward pass; batches are fixed per shard so that a resumed dump is byte-identical."""
    probe_positions: int = Field(2_048, ge=0)
    """Validation positions whose full distribution is kept (float16) for exact KL without a teacher."""
    threads: int | None = Field(None, ge=1)
    """Torch CPU threads; byte identity is promised for equal counts. None: all cores."""

    @model_validator(mode="after")
    def _first_temperature_is_one(self) -> DumpConfig:
        if not self.temperatures or self.temperatures[0] != 1.0:
            raise ValueError(f"temperatures must start with 1.0, got {list(self.temperatures)}")
        if min(self.temperatures) <= 0 or len(set(self.temperatures)) != len(self.temperatures):
            raise ValueError(f"temperatures must be positive and distinct, got {list(self.temperatures)}")
        return self


class PrepareJob(Strict):
    """One run of `prepare`: writes `output/train` and `output/val` (kind `rows`) and `output/stage.json`."""

    stage: Literal["prepare"] = "prepare"
    teacher: Teacher
    prepare: PrepareConfig
    output: Path
    digest: str
    """Digest of config and inputs, given by the conductor and written into the folder's stage file."""


class DumpJob(Strict):
    """One run of `dump`: reads `corpus/{train,val}`, writes `output/{train,val,teacher}`."""

    stage: Literal["dump"] = "dump"
    teacher: Teacher
    dump: DumpConfig
    corpus: Path
    output: Path
    digest: str


Job = Annotated[PrepareJob | DumpJob, Field(discriminator="stage")]
