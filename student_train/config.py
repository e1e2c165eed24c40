"""What phase two can be told: the student, its loss, its training, and what is done with it afterwards.

Plain frozen pydantic models; unknown keys are refused. Nothing here imports torch, so the conductor may read it.
The phase itself is started with one *job*, a JSON file: `torchrun --standalone -m student_train job.json`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Strict(BaseModel):
    """Frozen, refuses unknown keys, field docs are the strings under the fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class WiringConfig(Strict):
    """A seeded Neural Circuit Policy wiring (Lechner et al. 2020), sampled as the ncps package's AutoNCP does."""

    kind: Literal["ncps"] = "ncps"
    sparsity: float = Field(0.5, ge=0.1, le=0.9)
    seed: int = 22_222


class CellConfig(Strict):
    """The LTC-NCP cell (research: Hasani et al. 2021)."""

    units: int = Field(512, ge=8)
    """U: all neurons of one block."""
    motor: int | None = Field(None, ge=1)
    """Output neurons; default U // 4."""
    wiring: WiringConfig = WiringConfig()
    synapses: Literal["per_source", "per_edge"] = "per_source"
    """`per_source`: (mu, sigma) tied per source neuron, so a synapse is sigmoid + masked matmul; `per_edge`: ncps."""
    unfolds: int = Field(1, ge=1, le=12)
    """K: fused semi-implicit sub-steps a token."""
    sweeps: int = Field(8, ge=1, le=64)
    """Quasi-Newton sweeps of the command layer; a constant, never decided by data."""


class EncoderConfig(Strict):
    """Causal sliding-window attention with rotary positions: the front end."""

    layers: int = Field(3, ge=0)
    heads: int = Field(4, ge=1)
    window: int = Field(256, ge=1)


class StudentConfig(Strict):
    """Encoder, LTC-NCP blocks, head."""

    hidden_size: int = Field(256, ge=8)
    """D."""
    encoder: EncoderConfig = EncoderConfig()
    blocks: int = Field(3, ge=1)
    """LTC-NCP blocks."""
    cell: CellConfig = CellConfig()
    conv_kernel: int = Field(4, ge=1)
    """Causal depthwise convolution before the cell."""
    mlp_ratio: float = Field(2.0, gt=0)
    """Width of the SwiGLU inside a block, times D."""
    embedding_size: int | None = Field(None, ge=8)
    """E: factorised tied embedding V x E, E x D; None: E = D, no factor."""
    prompt_runs: bool = False
    """Tokens of one prompt run attend to each other both ways."""

    @model_validator(mode="after")
    def _heads_divide(self) -> StudentConfig:
        if self.hidden_size % (2 * self.encoder.heads):
            raise ValueError(
                f"hidden_size {self.hidden_size} does not divide into {self.encoder.heads} heads of even width"
            )
        return self


class LossConfig(Strict):
    """Weighted sum of parts; every part is reported by name."""

    hybrid: float = Field(1.0, ge=0)
    """Unbiased cross-entropy to head + tail draws, minus the stored entropy (an estimate of forward KL)."""
    forward_kl: float = Field(0.0, ge=0)
    """Forward KL on the events {head ids, rest}."""
    cross_entropy: float = Field(0.1, ge=0)
    """Cross-entropy to the corpus label."""

    @model_validator(mode="after")
    def _something(self) -> LossConfig:
        if self.hybrid + self.forward_kl + self.cross_entropy <= 0:
            raise ValueError("all loss weights are 0: give hybrid, forward_kl or cross_entropy a positive weight")
        return self


class OptimizerConfig(Strict):
    learning_rate: float = Field(2e-3, gt=0)
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.1, ge=0)
    """Not applied to vectors (norms, biases) nor to the cell's constrained parameters."""
    fused: bool | Literal["auto"] = "auto"
    """torch's AdamW in one kernel; `auto`: on GPUs, unless the optimizer state lies in CPU memory."""
    warmup_steps: int = Field(20, ge=0)
    schedule: Literal["cosine", "wsd", "linear"] = "cosine"
    """After the warm-up: a half cosine, a plateau with a linear end (warmup-stable-decay), or a straight line."""
    decay_share: float = Field(0.2, gt=0, le=1)
    """Only wsd: share of the steps after the warm-up in which the rate falls."""
    final_fraction: float = Field(0.1, ge=0, le=1)
    """The schedule ends at this share of the learning rate."""
    clip: float = Field(1.0, ge=0)
    """Largest global gradient norm; 0: off."""


class TrainConfig(Strict):
    """One student, from shards, under DeepSpeed."""

    student: StudentConfig = StudentConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    batch_size: int = Field(2, ge=1)
    """Rows a rank takes in one micro-step."""
    accumulation: int = Field(4, ge=1)
    """Micro-steps in one step. The global batch is batch_size * accumulation * ranks."""
    global_batch: int | None = Field(None, ge=1)
    """Rows in one step over all ranks; if given, accumulation follows from it and from the number of ranks."""
    epochs: int = Field(10, ge=1)
    steps: int | None = Field(None, ge=1)
    """Stop after this many steps; wins over epochs."""
    max_minutes: float | None = Field(None, gt=0)
    """Time box: stop (and save) after this long, whatever steps and epochs say."""
    ranks: int | Literal["auto"] = "auto"
    """Processes; `auto`: one a GPU, one on CPU."""
    zero_stage: Literal[0, 1, 2, 3] = 3
    offload: bool = False
    """Keep optimizer state and parameters in CPU memory (stage 3)."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """`auto`: bfloat16 on GPUs, float32 on CPUs."""
    activation_checkpointing: bool = False
    """Keep only each layer's input and compute its inside again in the backward pass: less memory, more time."""
    ema: float | None = Field(None, gt=0, lt=1)
    """Decay a step of an exponential moving average of the weights, which is then the model that is written."""
    checkpoint_every: int = Field(50, ge=1)
    """Steps between checkpoints."""
    keep_checkpoints: int = Field(2, ge=1)
    log_every: int = Field(1, ge=1)
    seed: int = 0
    """Decides initial weights and data order."""
    threads: int | None = Field(None, ge=1)
    """Torch CPU threads a rank; None: cores divided by ranks."""
    init_bias: Literal["unigram", "zero"] = "unigram"
    """Output bias at start: log unigram of the training labels, or zero."""
    deepspeed: dict[str, Any] = {}
    """Merged over the generated DeepSpeed JSON; keys that the other settings own are refused."""


class EvalConfig(Strict):
    """Held-out figures from the validation shards and the probe."""

    max_positions: int = Field(200_000, ge=1)
    """Scored validation positions used, at most."""
    samples: int = Field(3, ge=0)
    """Positions shown with the teacher's and the student's most likely tokens."""
    prompt: str = "The"
    """Beginning of the generated line in the report."""
    max_new_tokens: int = Field(32, ge=0)


class GenerateConfig(Strict):
    """How tokens are picked."""

    max_new_tokens: int = Field(128, ge=1)
    temperature: float = Field(0.8, ge=0)
    """0: greedy."""
    top_k: int = Field(0, ge=0)
    """0: off."""
    top_p: float = Field(0.95, gt=0, le=1)
    repetition_penalty: float = Field(1.0, gt=0)
    seed: int = 0


class ExportConfig(Strict):
    dtype: Literal["float32", "bfloat16"] = "float32"


class TrainJob(Strict):
    """Writes `output/{checkpoints/,model/,metrics.jsonl,deepspeed.json,stage.json}`; `shards` holds train/ and val/."""

    stage: Literal["train"] = "train"
    train: TrainConfig
    shards: Path
    output: Path
    digest: str


class EvalJob(Strict):
    """Reads a trained `model/` folder and `shards/{val,teacher}`; writes `output/eval.json`."""

    stage: Literal["eval"] = "eval"
    eval: EvalConfig
    train: TrainConfig
    """For the untrained twin (same seed) and the ranks it was trained with."""
    model: Path
    shards: Path
    output: Path
    digest: str


class GenerateJob(Strict):
    stage: Literal["generate"] = "generate"
    generate: GenerateConfig
    model: Path
    prompt: str
    chat: bool = False
    """Wrap the prompt in the tokenizer's chat template."""


class ExportJob(Strict):
    stage: Literal["export"] = "export"
    export: ExportConfig
    model: Path
    evaluation: Path | None = None
    """eval.json, for the model card."""
    output: Path
    digest: str


Job = Annotated[TrainJob | EvalJob | GenerateJob | ExportJob, Field(discriminator="stage")]
