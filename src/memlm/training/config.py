"""Settings of a run: data, model, stages and training."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from functools import reduce
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from pydantic import Field, PlainSerializer, PlainValidator, model_validator
from transformers import PreTrainedConfig

from memlm.errors import ConfigError
from memlm.models import MemoryModelConfig, RecurrentMemoryConfig, SlotWriterConfig, TextAutoencoderConfig
from memlm.objectives import LinearSchedule, Mixture, ObjectiveName, ends_of, value_at
from memlm.training.model_settings import ModelConfig, complete, merged, settings_of
from memlm.training.schema import Count, Settings, Share, checked, settings_names


class DataConfig(Settings):
    """Source of the text, and how it becomes tokens."""

    text: Annotated[str, Field(min_length=1)] = "sotu"
    """Bundled corpus, file, folder, glob, JSONL, JSON, CSV, Parquet or Hub id."""
    text_field: str = "text"
    """Field of a record that holds the text; a dotted name reaches into records within it."""
    strict: bool = False
    """Stop at the first item of the text that cannot be read, instead of leaving it out and counting it."""
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Share of documents that figures come from; nothing is trained or chosen on them."""
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Share of the other documents that choices are made on, and that training is watched on."""
    split_seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None
    """Seed of the split, so that runs of several seeds hold out the same text; training.seed by default."""
    max_documents: Annotated[int, Field(ge=3)] | None = None
    """Read at most this many documents."""
    tokenizer: Annotated[str, Field(min_length=1)] | None = None
    """Folder or Hub id of an existing tokenizer; by default a byte-level BPE is trained on the training half."""
    token_table: Annotated[str, Field(min_length=1)] | None = None
    """Folder or Hub id of a causal language model. An autoencoder takes its tokenizer and the principal components of
    its token embeddings, which stay fixed, so that this language model can read the memories."""
    vocab_size: Annotated[int, Field(ge=258, le=2**20)] = 1024
    """Size of the trained tokenizer."""
    short_rows: Share = 0.05
    """Share of training rows that are cut at a random length, so that short texts are learned too."""

    @model_validator(mode="after")
    def _one_tokenizer(self) -> DataConfig:
        if self.token_table is not None and self.tokenizer is not None:
            raise ConfigError(
                f"data.tokenizer ('{self.tokenizer}') has no place beside data.token_table ('{self.token_table}'), "
                "which brings its own; leave it out."
            )
        return self


class OptimizerConfig(Settings):
    """Optimizer and learning rate schedule."""

    name: Literal["muon", "adamw"] = "muon"
    """Muon for matrices and AdamW for the rest, or AdamW for all parameters."""
    learning_rate: Annotated[float, Field(gt=0, le=10)] = 2e-3
    """Peak learning rate of Muon, or of AdamW where it updates all parameters."""
    adamw_learning_rate: Annotated[float, Field(gt=0, le=10)] = 2e-3
    """Peak learning rate of AdamW beside Muon: embeddings, head, norms, biases."""
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Decoupled weight decay of all parameters."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.95)
    """Betas of AdamW."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """Momentum of Muon."""
    warmup_steps: Annotated[int, Field(ge=0)] = 20
    """Steps in which the learning rate rises from zero."""
    decay: Literal["linear", "cosine", "constant"] = "linear"
    """Shape of the learning rate's decay to zero."""
    decay_share: Share = 1.0
    """Share of the steps in which the learning rate decays."""
    gradient_clip: Annotated[float, Field(ge=0)] = 1.0
    """Largest norm of all gradients together; 0 clips nothing."""


class Stage(Settings):
    """One part of the training: its objectives, and the weights that it may change."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,31}$")]
    """Name of the stage's folder and of its lines in the log."""
    objectives: dict[ObjectiveName, Annotated[float, Field(ge=0)] | LinearSchedule]
    """Weight of each objective, a number or a linear schedule."""
    steps: Count | None = None
    """Number of updates; training.steps by default."""
    train: Literal["all", "decoder", "readout"] = "all"
    """Weights that may change: all except a frozen encoder's, decoder and readout, or the readout with positions and
    the head for blanks (a warm-up)."""
    start: Literal["previous", "fresh"] = "previous"
    """Decoder and readout continue from the previous stage, or start from new weights."""
    learning_rate: Annotated[float, Field(gt=0, le=10)] | None = None
    """Peak learning rate of this stage; the run's by default."""
    decay_share: Share | None = None
    """Share of the stage's steps in which the learning rate falls to zero; the run's by default."""
    row_share: dict[ObjectiveName, Annotated[float, Field(gt=0, le=1)] | LinearSchedule] = Field(default_factory=dict)
    """Share of the rows that an objective is computed on (every n-th row, n a whole number), which maintains what has
    been learned at a part of its cost."""
    distances: Literal["half", "every"] = "half"
    """Chunks between a token and the blank that asks for it in blank_copy: half of all, or each number in turn."""
    max_targets: Count | LinearSchedule | None = None
    """Number of leading tokens of each chunk that blank_copy asks for, which may grow over the stage (LOG.md); all by
    default."""
    random_share: Share | LinearSchedule = 0.0
    """Share of blank_copy's tokens that are replaced by random ones: memories then keep facts that no text implies."""
    dropout_share: Share = 0.5
    """Share of the second half's tokens that token_dropout hides."""

    @property
    def mixture(self) -> Mixture:
        """Objectives with their weights."""
        return Mixture({**self.objectives})

    @property
    def draws_random(self) -> bool:
        """True if any of blank_copy's tokens are replaced by random ones."""
        return max(ends_of(self.random_share)) > 0

    @property
    def changes_chunks(self) -> ObjectiveName | None:
        """Name of an objective whose chunks differ from the text's, so that cached memories do not fit; else None."""
        changed: dict[ObjectiveName, bool] = {"token_dropout": True, "blank_copy": self.draws_random}
        return next((name for name in self.objectives if changed.get(name)), None)

    def random_share_at(self, step: int) -> float:
        """Return the share of random tokens in blank_copy at a step of the stage, the first being 0."""
        return value_at(self.random_share, step)

    def max_targets_at(self, step: int) -> int | None:
        """Return how many tokens of each chunk blank_copy asks for at a step of the stage; None for all."""
        targets = self.max_targets
        return max(1, round(targets.at(step))) if isinstance(targets, LinearSchedule) else targets

    def row_interval_at(self, objective: str, step: int) -> int:
        """Return n where an objective is computed on every n-th row at a step of the stage."""
        return round(1 / value_at(self.row_share.get(cast(ObjectiveName, objective), 1.0), step))

    @model_validator(mode="after")
    def _check(self) -> Stage:
        where = f"stage '{self.name}'"
        if not self.objectives:
            raise ConfigError(f"{where} has no objectives; name at least one, such as next_token.")
        self._check_row_share(where)
        start, end = ends_of(self.random_share)
        if max(start, end) > 1:
            raise ConfigError(f"random_share of {where} (from {start} to {end}) must be between 0 and 1.")
        starts, ends = zip(*map(ends_of, self.objectives.values()), strict=True)
        for when, weights in (("start", starts), ("end", ends)):
            if not sum(weights) > 0:
                raise ConfigError(f"the weights of {where} sum to 0 at its {when}; at least one must be above 0.")
        return self

    def _check_row_share(self, where: str) -> None:
        for name, share in self.row_share.items():
            start, end = ends_of(share)
            if not 0 < min(start, end) <= max(start, end) <= 1:
                raise ConfigError(
                    f"row_share of {name} in {where} (from {start} to {end}) must lie above 0 and not above 1."
                )
            if name not in self.objectives or name == "reconstruction":
                what = "which reads the others' rows" if name == "reconstruction" else "which it does not ask for"
                raise ConfigError(f"row_share of {where} names {name}, {what}; leave it out.")
        if self.row_share and self.objectives.keys() - {"reconstruction"} <= self.row_share.keys():
            raise ConfigError(f"row_share of {where} leaves rows that nothing is asked of; give one objective all.")


class TrainingConfig(Settings):
    """Length, batch size, and what is logged and kept."""

    steps: Count = 800
    """Number of updates of a stage that does not set its own."""
    batch_size: Annotated[int, Field(ge=1, le=2**20)] = 64
    """Rows in each update."""
    sharding: Literal["none", "fsdp2"] = "none"
    """Each process holds all weights, or (PyTorch's FSDP2) a share of weights, gradients and optimizer states."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """bf16 autocast where the machine computes it faster, or fp32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device that trains; a GPU where there is one by default."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of the split, the weights, the order of rows and the noise."""
    evaluate_every: Count = 100
    """Steps between validations."""
    evaluate_rows: Count = 512
    """Number of validation rows that are read each time."""
    checkpoint_every: Count = 200
    """Steps between checkpoints."""
    memory_cache: bool | None = None
    """Compute a frozen encoder's memories once and read them from disk; by default if rows are read more than once."""
    keep_checkpoints: Count = 1
    """Number of newest checkpoints that are kept."""
    log_every: Count = 20
    """Steps between log lines."""
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    """Optimizer and learning rate schedule."""


class PretrainedDecoder(Settings):
    """A pretrained decoder that learns to read memories, in place of the model's own decoder."""

    path: Annotated[str, Field(min_length=1)] | None = None
    """Folder or Hub id of a causal language model; its tokenizer comes with it."""
    gguf_file: Annotated[str, Field(min_length=1)] | None = None
    """Name of the GGUF file, where the decoder's folder holds one; its weights are made plain."""
    dtype: Literal["float32", "bfloat16", "float16", "8bit"] = "float32"
    """Type of the decoder's own weights in memlm_slot_writer; 8bit needs a GPU and bitsandbytes."""
    adapter_folder: Annotated[str, Field(min_length=1)] | None = None
    """Folder of a trained memlm_slot_writer whose adapters training goes on from, on this run's text."""
    adapter: Literal["all", "lora", "gated", "connector"] = "all"
    """Weights of the pretrained decoder that learn: all, low-rank adapters that are active behind memories only (lora,
    or gated, each behind a gate that starts shut), or none but those that join it to memories (connector). Rank and
    alpha of adapters are model.lora.rank and model.lora.alpha."""


def _as_model(value: Any) -> ModelConfig:
    if isinstance(value, PreTrainedConfig):
        return complete(settings_of(value))
    if not isinstance(value, dict):
        raise ConfigError(f"model ({value!r}) must hold settings by name.")
    return complete(value)


def _default_data(values: dict[str, Any]) -> DataConfig:
    return DataConfig() if isinstance(values.get("model"), TextAutoencoderConfig) else DataConfig(short_rows=0.0)


_ALONE: dict[type, tuple[str, list[ObjectiveName]]] = {
    TextAutoencoderConfig: ("autoencoders", ["reconstruction"]),
    RecurrentMemoryConfig: ("recurrent memory", ["next_token", "copy", "token_dropout", "blank_copy"]),
    SlotWriterConfig: ("memlm_slot_writer", ["distillation"]),
}
"""Names and objectives of models whose parts are all trained at once."""


def _default_stages(values: dict[str, Any]) -> tuple[Stage, ...]:
    _, objectives = _ALONE.get(type(values.get("model")), ("", ["next_token"]))
    return (Stage(name=objectives[0], objectives={objectives[0]: 1.0}),)


if TYPE_CHECKING:
    RunModel = ModelConfig
else:
    # pydantic would look into transformers' classes otherwise, which it cannot describe
    RunModel = Annotated[Any, PlainValidator(_as_model), PlainSerializer(settings_of)]


class RunConfig(Settings):
    """Everything that decides a run."""

    recipe: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]{0,99}$")] = "custom"
    """Name of the recipe that this began as."""
    model: RunModel = Field(default_factory=lambda: complete({}))
    """Configuration of the model; sizes and ids that the data decides are filled in when it is built."""
    encoder_run: str | None = None
    """Run folder whose encoder is used, frozen; its text, tokenizer and split come with it."""
    decoder: PretrainedDecoder = Field(default_factory=PretrainedDecoder)
    """Pretrained decoder in place of the model's own."""
    data: DataConfig = Field(default_factory=_default_data)
    """Text and tokens."""
    stages: tuple[Stage, ...] = Field(default_factory=_default_stages)
    """Parts of the training, one after the other; an autoencoder has one."""
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    """Batch, learning rates, seed."""

    @property
    def is_autoencoder(self) -> bool:
        """True if the run trains a text autoencoder."""
        return isinstance(self.model, TextAutoencoderConfig)

    @property
    def steps(self) -> int:
        """Number of updates of all stages together."""
        return sum(map(self.steps_in, self.stages))

    def steps_in(self, stage: Stage) -> int:
        """Return the number of updates of a stage."""
        return self.training.steps if stage.steps is None else stage.steps

    def steps_of(self, objective: ObjectiveName) -> int:
        """Return the number of updates with this objective, or of all stages where none has it."""
        return sum(self.steps_in(stage) for stage in self.stages if objective in stage.objectives) or self.steps

    @model_validator(mode="after")
    def _check(self) -> RunConfig:
        if not self.stages:
            raise ConfigError("stages (none) must hold at least one stage.")
        if self.encoder_run is not None and self.data.tokenizer is not None:
            raise ConfigError(
                f"data.tokenizer ('{self.data.tokenizer}') has no place beside encoder_run ('{self.encoder_run}'), "
                "whose encoder reads its own tokenizer's tokens; leave it out."
            )
        names = [stage.name for stage in self.stages]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ConfigError(f"two stages are named '{min(twice)}'; give each a name of its own.")
        self._check_row_intervals()
        if self.data.token_table is not None and not self.is_autoencoder:
            raise ConfigError(f"data.token_table ('{self.data.token_table}') is for autoencoders; leave it out.")
        if type(self.model) in _ALONE:
            self._check_alone(*_ALONE[type(self.model)])
        else:
            self._check_memory(cast(MemoryModelConfig, self.model))
        return self

    def _check_memory(self, model: MemoryModelConfig) -> None:
        if any("distillation" in stage.objectives for stage in self.stages):
            raise ConfigError("the objective distillation is of memlm_slot_writer (recipe memory-pretrained).")
        if self.decoder.path is not None and (
            model.layout != "variable" or model.learned_positions or model.blank_head
        ):
            raise ConfigError(
                "a pretrained decoder (decoder.path) reads text at the positions that it knows: model.layout must be "
                "'variable', learned_positions and blank_head false."
            )
        self._check_copies(model.num_chunks)

    def _check_row_intervals(self) -> None:
        """Check that every step has at least one row for every objective."""
        rows = self.training.batch_size
        for stage in self.stages:
            for name in stage.row_share:
                longest = max(stage.row_interval_at(name, step) for step in (0, self.steps_in(stage)))
                if longest > rows:
                    raise ConfigError(
                        f"row_share of {name} in stage '{stage.name}' asks each {longest}th row, more than "
                        f"training.batch_size ({rows}); raise either."
                    )

    def _check_alone(self, model: str, objectives: Sequence[str]) -> None:
        """Check that a model has no parts of others, and that stages train all of it, with objectives that it has."""
        if self.decoder.path is not None and not isinstance(self.model, SlotWriterConfig):
            raise ConfigError(f"a pretrained decoder (decoder.path) has no place in {model}; use memlm_memory.")
        if self.encoder_run is not None:
            raise ConfigError(f"encoder_run ('{self.encoder_run}') has no place in {model}; leave it out.")
        for stage in self.stages:
            foreign = [name for name in stage.objectives if name not in objectives]
            if stage.train != "all" or foreign:
                what = f"train ('{stage.train}')" if stage.train != "all" else f"objective ({', '.join(foreign)})"
                raise ConfigError(f"{what} of stage '{stage.name}' has no place in {model}; leave it out.")

    def _check_copies(self, num_chunks: int) -> None:
        for stage in self.stages:
            whole = {"blank_copy"} if stage.distances == "every" else set[str]()
            copies = sorted({"copy", "token_dropout", "blank_copy"} & stage.objectives.keys() - whole)
            if copies and num_chunks % 2:
                raise ConfigError(
                    f"num_chunks ({num_chunks}) must be even for {copies[0]}: "
                    "the second half of the chunks repeats the first."
                )
            if "blank_copy" in stage.objectives and num_chunks == 1:
                raise ConfigError("num_chunks (1) must be at least 2 for blank_copy: text and blanks.")


def make_run_config(values: dict[str, Any]) -> RunConfig:
    """Return checked settings of a run from nested plain values.

    Raises:
        ConfigError: the first value that does not fit, in one line.
    """
    return checked(RunConfig, values)


def merge_run(base: RunConfig, changes: dict[str, Any]) -> RunConfig:
    """Return `base` with nested changes over it, checked."""
    return make_run_config(merged(base.model_dump(mode="json"), changes))


def with_steps(config: RunConfig, steps: int) -> RunConfig:
    """Return the same run of another length; stages and their schedules keep their shares, at least one step each."""
    share = steps / config.steps
    changes: dict[str, Any] = {"stages": [_scaled(stage.model_dump(mode="json"), share) for stage in config.stages]}
    if any(stage.steps is None for stage in config.stages):
        changes["training"] = {"steps": max(1, round(config.training.steps * share))}
    return merge_run(config, changes)


def _scaled(value: Any, share: float) -> Any:
    """Return nested values with every number of steps multiplied by `share`, at least 1."""
    if not isinstance(value, dict):
        return value
    settings = cast("dict[str, Any]", value)
    scaled = {name: _scaled(inner, share) for name, inner in settings.items()}
    if settings.get("steps") is not None:
        scaled["steps"] = max(1, round(settings["steps"] * share))
    return scaled


def run_settings_help() -> dict[str, tuple[Any, str]]:
    """Return the dotted name of every setting of a run, apart from its model's, with its default and help text."""
    values = RunConfig().model_dump(mode="json")
    texts = {name: text for name, text in settings_names(RunConfig).items() if name not in ("recipe", "model")}
    return {
        name: (reduce(operator.getitem, name.split("."), values), " ".join(text.split()))
        for name, text in texts.items()
    }
