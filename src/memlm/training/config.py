"""Settings of a run: data, model, stages and training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, PlainSerializer, PlainValidator, model_validator
from transformers import PreTrainedConfig

from memlm.errors import ConfigError
from memlm.models import MemoryModelConfig, RecurrentMemoryConfig, TextAutoencoderConfig
from memlm.objectives import ObjectiveName
from memlm.training.model_settings import ModelConfig, complete, merged, settings_of
from memlm.training.schema import Count, Settings, Share, checked, settings_names
from memlm.training.stage_config import Stage


class DataConfig(Settings):
    """Source of the text, and how it becomes tokens."""

    text: Annotated[str, Field(min_length=1)] = "sotu"
    """Bundled corpus, file, folder, glob, JSONL, Parquet or Hub id."""
    text_field: str = "text"
    """Field of a JSONL or Parquet record that holds the text."""
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Share of documents that figures come from; nothing is trained or chosen on them."""
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Share of the other documents that choices are made on, and that training is watched on."""
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


class TrainingConfig(Settings):
    """Length, batch size, and what is logged and kept."""

    steps: Count = 800
    """Number of updates of a stage that does not set its own."""
    batch_size: Annotated[int, Field(ge=1, le=2**20)] = 64
    """Rows in each update."""
    sharding: Literal["none", "fsdp2"] = "none"
    """Each of several processes holds all weights (none), or a share of weights, gradients and optimizer states
    (PyTorch's FSDP2)."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """bf16 autocast where the machine computes it faster, or fp32."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of the split, the weights, the order of rows and the noise."""
    evaluate_every: Count = 100
    """Steps between validations."""
    evaluate_rows: Count = 512
    """Number of validation rows that are read each time."""
    checkpoint_every: Count = 200
    """Steps between checkpoints."""
    memory_cache: bool | None = None
    """Compute a frozen encoder's memories once and read them from disk; by default if the run reads more rows than the
    text has."""
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


def _default_stages(values: dict[str, Any]) -> tuple[Stage, ...]:
    if isinstance(values.get("model"), TextAutoencoderConfig):
        return (Stage(name="reconstruction", objectives={"reconstruction": 1.0}),)
    return (Stage(name="next_token", objectives={"next_token": 1.0}),)


if TYPE_CHECKING:
    RunModel = ModelConfig
else:
    # pydantic would look into transformers' classes otherwise, which it cannot describe
    RunModel = Annotated[Any, PlainValidator(_as_model), PlainSerializer(settings_of)]


class RunConfig(Settings):
    """Everything that decides a run."""

    recipe: str = "custom"
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
    def asks_reconstruction(self) -> bool:
        """True if any stage has the reconstruction objective."""
        return any("reconstruction" in stage.objectives for stage in self.stages)

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
    def _fits(self) -> RunConfig:
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
            raise ConfigError(f"two stages are named '{sorted(twice)[0]}'; give each a name of its own.")
        self._check_row_intervals()
        if isinstance(self.model, TextAutoencoderConfig):
            self._check_autoencoder()
            return self
        if self.data.token_table is not None:
            raise ConfigError(f"data.token_table ('{self.data.token_table}') is for autoencoders; leave it out.")
        self._check_recurrent()
        self._check_pretrained()
        self._check_copies(self.model.num_chunks)
        return self

    def _check_autoencoder(self) -> None:
        for name, value in (("encoder_run", self.encoder_run), ("decoder.path", self.decoder.path)):
            if value is not None:
                raise ConfigError(f"{name} ('{value}') is for memory models; an autoencoder trains its own parts.")
        for stage in self.stages:
            if stage.train != "all" or [*stage.objectives] != ["reconstruction"]:
                what = (
                    f"train ('{stage.train}')" if stage.train != "all" else f"objective ({', '.join(stage.objectives)})"
                )
                raise ConfigError(f"{what} of stage '{stage.name}' has no place in an autoencoder; it reconstructs.")

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

    def _check_copies(self, num_chunks: int) -> None:
        objectives = {name for stage in self.stages for name in stage.objectives}
        halves = {
            "blank_copy" for stage in self.stages if "blank_copy" in stage.objectives and stage.distances == "half"
        }
        copies = objectives & {"copy", "token_dropout"} | halves
        if copies and num_chunks % 2:
            raise ConfigError(
                f"num_chunks ({num_chunks}) must be even for {sorted(copies)[0]}: "
                "the second half of the chunks repeats the first."
            )
        if "blank_copy" in objectives and num_chunks == 1:
            raise ConfigError("num_chunks (1) must be at least 2 for blank_copy: text and blanks.")

    def _check_recurrent(self) -> None:
        if not isinstance(self.model, RecurrentMemoryConfig):
            return
        if self.encoder_run is not None:
            raise ConfigError(
                f"encoder_run ('{self.encoder_run}') has no place in recurrent memory, which has no encoder."
            )
        for stage in self.stages:
            if stage.train != "all" or "reconstruction" in stage.objectives:
                what = f"train ('{stage.train}')" if stage.train != "all" else "reconstruction"
                raise ConfigError(f"{what} of stage '{stage.name}' has no place in recurrent memory; leave it out.")

    def _check_pretrained(self) -> None:
        if self.decoder.path is None:
            return
        model = self.model
        if not isinstance(model, MemoryModelConfig):
            raise ConfigError("a pretrained decoder (decoder.path) has no recurrent memory; use memlm_memory.")
        if model.layout != "variable" or model.learned_positions or model.blank_head:
            raise ConfigError(
                "a pretrained decoder (decoder.path) reads text at the positions that it knows: model.layout must be "
                "'variable', learned_positions and blank_head false."
            )


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


def _scaled(stage: dict[str, Any], share: float) -> dict[str, Any]:
    def moved(value: Any) -> Any:
        return {**value, "steps": max(1, round(value["steps"] * share))} if isinstance(value, dict) else value

    return {
        **stage,
        "steps": None if stage["steps"] is None else max(1, round(stage["steps"] * share)),
        "objectives": {name: moved(weight) for name, weight in stage["objectives"].items()},
        "random_share": moved(stage["random_share"]),
        "max_targets": moved(stage["max_targets"]),
        "row_share": {name: moved(share) for name, share in stage["row_share"].items()},
    }


def run_settings_help() -> dict[str, tuple[Any, str]]:
    """Return the dotted name of every setting of a run, apart from its model's, with its default and help text."""
    values = RunConfig().model_dump(mode="json")
    found: dict[str, tuple[Any, str]] = {}
    for name, text in settings_names(RunConfig).items():
        value: Any = values
        for part in name.split("."):
            value = value[part]
        found[name] = (value, " ".join(text.split()))
    return {name: value for name, value in found.items() if name not in ("recipe", "model")}
