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


LOSS_PARTS = (
    "hybrid",
    "forward_kl",
    "label_residual",
    "decoupled",
    "reverse_kl",
    "jsd",
    "renormalised",
    "cross_entropy",
)
"""Names of the weights in `LossConfig`, in the order in which the parts are reported."""
TEMPERED_PARTS = ("forward_kl", "decoupled", "reverse_kl", "jsd")
"""Parts that `temperature` acts on."""


class LossConfig(Strict):
    """Weighted sum of parts; every part is reported by name. A part of weight 0 is not computed."""

    hybrid: float = Field(1.0, ge=0)
    """Unbiased cross-entropy to head + tail draws, minus the stored entropy (an estimate of forward KL)."""
    forward_kl: float = Field(0.0, ge=0)
    """Forward KL on the events {head ids, rest}."""
    label_residual: float = Field(0.0, ge=0)
    """Forward KL on the events {head ids, label, rest}: the label is an event of its own also outside the head."""
    decoupled: float = Field(0.0, ge=0)
    """Forward KL of the head's mass, plus the head's mass times the forward KL inside the head; only the latter is
    tempered."""
    reverse_kl: float = Field(0.0, ge=0)
    """KL of the student from the teacher on the events {head ids, rest}: mode seeking."""
    jsd: float = Field(0.0, ge=0)
    """Generalised Jensen-Shannon divergence on the events {head ids, rest}; see `jsd_beta`."""
    renormalised: float = Field(0.0, ge=0)
    """The field's baseline, biased: the head scaled up to mass 1, the tail forgotten."""
    cross_entropy: float = Field(0.1, ge=0)
    """Cross-entropy to the corpus label."""
    temperature: float = Field(1.0, gt=0)
    """T of forward_kl, reverse_kl and jsd (there one that the dump stored a rest mass for) and of decoupled (any);
    each is multiplied with T squared, so that its gradient keeps its size. The other parts are at T = 1 always."""
    jsd_beta: float = Field(0.5, gt=0, lt=1)
    """Share of the teacher in the mixture of `jsd`."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of the cross-entropy's target that is spread evenly over the vocabulary."""
    entropy_power: float = Field(0.0, ge=-4, le=4)
    """Weight of a position: (1 + teacher's entropy in nats) to this power; above 0 favours the uncertain ones."""
    source_weights: dict[str, Annotated[float, Field(ge=0)]] = {}
    """Weight of a position by the `source` of its row; sources not named have weight 1."""

    @model_validator(mode="after")
    def _something(self) -> LossConfig:
        if not self.parts:
            raise ValueError(f"all loss weights are 0: give one of {', '.join(LOSS_PARTS)} a positive weight")
        if self.temperature != 1.0 and not set(TEMPERED_PARTS) & set(self.parts):
            raise ValueError(
                f"temperature {self.temperature} has no effect: give one of {', '.join(TEMPERED_PARTS)} "
                "a positive weight, or leave the temperature at 1"
            )
        if self.label_smoothing and not self.cross_entropy:
            raise ValueError(
                f"label_smoothing {self.label_smoothing} has no effect while cross_entropy is 0: give that a weight"
            )
        return self

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts with a positive weight, in the order in which they are reported."""
        return tuple(name for name in LOSS_PARTS if getattr(self, name) > 0)

    @property
    def temperatures(self) -> tuple[float, ...]:
        """Of the student's normalisers that the parts need; T = 1 first."""
        needs = self.temperature != 1.0 and set(self.parts) & {"forward_kl", "reverse_kl", "jsd"}
        return (1.0, self.temperature) if needs else (1.0,)


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
    shuffle: Literal["rows", "blocks"] = "rows"
    """`rows`: every order of rows is as likely as any other; `blocks`: shards are read in sequence, which large or
    remote dumps want, and rows are mixed within a window of some thousands of tokens a shard."""
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
    min_p: float = Field(0.0, ge=0, le=1)
    """Only tokens with at least this share of the likeliest token's probability; 0: off."""
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Texts that end the writing and are left out of it."""
    repetition_penalty: float = Field(1.0, gt=0)
    seed: int = 0


class ChatConfig(Strict):
    """A conversation in the terminal."""

    model: Path
    system: str | None = None
    generate: GenerateConfig = GenerateConfig()


class ServeConfig(Strict):
    """A student behind HTTP."""

    model: Path
    name: str
    """What clients call it."""
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65_535)
    """0: any free one; the line printed at the start says which."""
    api_key_env: str | None = None
    """Environment variable with the key that clients must show; None: no key."""
    max_rows: int = Field(64, ge=1)
    """Sequences written on at once."""
    max_waiting: int = Field(256, ge=0)
    """Sequences waiting for a row; more are refused with 429."""
    max_new_tokens: int = Field(4096, ge=1)
    """Most tokens a request may ask for."""
    max_prompt_tokens: int = Field(8192, ge=1)
    max_body_bytes: int = Field(1 << 20, ge=1)
    timeout_s: float = Field(300.0, gt=0)
    """Longest life of a request, waiting included."""
    grace_s: float = Field(20.0, ge=0)
    """After SIGTERM, how long running requests may take to end."""


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


class ScoreJob(Strict):
    """Answers questions about rows on standard input until it ends; writes no file. See `student_train.answer`."""

    stage: Literal["score"] = "score"
    model: Path
    datasets: dict[str, Path]
    """Folders of captures by the name that questions use."""
    top: int = Field(10, ge=1)
    """How many of the student's own most likely ids an answer holds a position."""


Job = Annotated[TrainJob | EvalJob | GenerateJob | ExportJob | ScoreJob, Field(discriminator="stage")]
