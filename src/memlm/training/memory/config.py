"""Settings of a memory model's run: encoder, decoder, and the stages in which they learn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from memlm.errors import ConfigError
from memlm.training.config import Count, DataConfig, Length, Settings, Share, TrainingConfig

if TYPE_CHECKING:
    from memlm.objectives import LinearSchedule, Mixture

ObjectiveName = Literal["next_token", "copy", "token_dropout", "blank_copy", "reconstruction"]
Width = Annotated[int, Field(ge=1, le=2**16)]
Backbone = Literal["mixer", "llama"]


class EncoderSettings(Settings):
    """What turns a chunk into memories; a frozen encoder of another run brings its own."""

    hidden_size: Width = 128
    """Width."""
    backbone: Backbone = "mixer"
    """Layers: learned matrices over positions, or attention."""
    learned_positions: bool = False
    """Llama layers get a learnt vector of each position beside their rotary ones."""
    num_layers: Annotated[int, Field(ge=0, le=512)] = 2
    """Layers."""
    num_heads: Count = 16
    """Heads of every layer."""
    kernel_size: Count = 1
    """Taps of a mixer's convolution along the width."""
    causal: bool = True
    """Positions see only earlier ones."""
    intermediate_size: Count | None = None
    """Width of the feed-forward layers; four times the hidden size by default."""
    bottleneck: Literal["last_token", "penultimate", "mean", "learned_slots", "positionwise", "slices"] = "slices"
    """How hidden states become memories."""
    bottleneck_size: Annotated[int, Field(ge=1, le=2**20)] = 128
    """Numbers in one memory."""
    bottleneck_rank: Count = 16
    """Numbers each position writes before all are joined (positionwise)."""
    memories_per_chunk: Count = 1
    """Memories that stand for one chunk."""
    noise_bits: Annotated[int, Field(ge=2, le=16)] | None = None
    """Train with noise as wide as one step of rounding to this many bits."""
    memory_activation: Literal["none", "tanh", "rms_norm"] = "rms_norm"
    """What bounds the numbers of a memory."""


class DecoderSettings(Settings):
    """What reads memories and tokens."""

    hidden_size: Width = 128
    """Width."""
    backbone: Backbone = "mixer"
    """Layers: learned matrices over positions, or attention."""
    num_layers: Annotated[int, Field(ge=1, le=512)] = 2
    """Layers."""
    num_heads: Count = 16
    """Heads of every layer."""
    kernel_size: Count = 1
    """Taps of a mixer's convolution along the width."""
    intermediate_size: Count | None = None
    """Width of the feed-forward layers; four times the hidden size by default."""
    pretrained: Annotated[str, Field(min_length=1)] | None = None
    """A causal language model's folder or Hub id, in place of the sizes above; its tokenizer comes with it."""
    adapter: Literal["all", "lora", "gated", "connector"] = "all"
    """Of a pretrained decoder, what learns: all of it, adapters that work behind memories alone (`gated`: each behind a
    gate that begins shut), or nothing but what joins it to memories."""
    lora_rank: Count = 16
    """Numbers that pass through each adapter."""
    lora_alpha: Annotated[float, Field(gt=0, le=2**16)] = 32.0
    """What adapters add is scaled by lora_alpha / lora_rank."""

    @model_validator(mode="after")
    def _fits(self) -> DecoderSettings:
        # rotary positions turn pairs of numbers
        whole = 2 * self.num_heads if self.backbone == "llama" else self.num_heads
        if self.hidden_size % whole:
            twice = "twice " if self.backbone == "llama" else ""
            raise ConfigError(
                f"decoder.hidden_size ({self.hidden_size}) must be divisible by {twice}num_heads ({self.num_heads}) "
                f"for {self.backbone} layers."
            )
        return self


class MemoryModelSettings(Settings):
    """The memory model."""

    memory: Literal["parallel", "recurrent"] = "parallel"
    """An encoder writes all chunks' memories at once, or the decoder hands itself `slots_per_chunk` vectors (RMT)."""
    backpropagation_depth: Count | None = None
    """Of recurrent memory: gradients pass through so many memories before they are cut; through all by default."""
    chunk_length: Length = 16
    """Tokens that one memory group stands for."""
    num_chunks: Count = 4
    """Chunks of a document in training."""
    slots_per_chunk: Count = 8
    """Decoder inputs that one chunk's memories take."""
    readout: Literal["repeated", "windowed", "positionwise", "slices"] = "slices"
    """How memories become slots."""
    readout_rank: Count = 16
    """Numbers each slot reads (positionwise)."""
    layout: Literal["aligned", "fixed", "variable", "oracle"] = "aligned"
    """Newest memory next to the tokens, the paper's two, or each chunk's own memory too (oracle)."""
    injection: Literal["token", "hidden", "projection"] = "token"
    """Memories stand before the tokens, or (oracle only) beside them: part of their width, or added to them."""
    learned_positions: bool = False
    """Tokens know their place in the chunk and slots theirs in the group by a learnt vector."""
    blank_head: bool = False
    """Blanks are answered through an output map of their own."""
    filler: Literal["masked", "learned", "constant"] = "masked"
    """What stands in unused slots."""
    use_memory: bool = True
    """False: the no_memory baseline."""
    encoder: EncoderSettings = Field(default_factory=EncoderSettings)
    """What writes memories."""
    decoder: DecoderSettings = Field(default_factory=DecoderSettings)
    """What reads them."""

    @property
    def document_length(self) -> int:
        """Tokens of a document in training."""
        return self.chunk_length * self.num_chunks

    @model_validator(mode="after")
    def _fits(self) -> MemoryModelSettings:
        if self.decoder.pretrained is None:
            return self
        if self.memory == "recurrent":
            raise ConfigError("a pretrained decoder (decoder.pretrained) has no recurrent memory; use 'parallel'.")
        if self.layout != "variable" or self.learned_positions or self.blank_head:
            raise ConfigError(
                "a pretrained decoder (decoder.pretrained) reads text where it knows it: layout must be 'variable', "
                "learned_positions and blank_head false."
            )
        return self


class Weight(Settings):
    """A weight, or a share, that moves over a stage."""

    start: Annotated[float, Field(ge=0)]
    """At the first step."""
    end: Annotated[float, Field(ge=0)]
    """From `steps` on."""
    steps: Count
    """In how many steps it gets there."""

    @property
    def ramp(self) -> LinearSchedule:
        """The same, for a step to be asked of."""
        from memlm.objectives import LinearSchedule

        return LinearSchedule(self.start, self.end, self.steps)


class Stage(Settings):
    """One part of the training: what is asked, and what may change."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,31}$")]
    """Names its folder and its lines in the log."""
    objectives: dict[ObjectiveName, Annotated[float, Field(ge=0)] | Weight]
    """Weight of each objective: next_token, copy, token_dropout, blank_copy, reconstruction."""
    steps: Count
    """Updates."""
    train: Literal["all", "decoder", "readout"] = "all"
    """What may change: all (but a frozen encoder), decoder and readout, or the readout alone, with places and the head
    for blanks (a warm-up)."""
    start: Literal["previous", "fresh"] = "previous"
    """Decoder and readout go on from the stage before, or begin anew."""
    learning_rate: Annotated[float, Field(gt=0, le=10)] | None = None
    """Peak rate of this stage; the run's by default."""
    decay_share: Share | None = None
    """Share of the stage's steps in which its rate falls to zero; the run's by default. 0: another stage goes on."""
    row_share: dict[ObjectiveName, Annotated[float, Field(gt=0, le=1)] | Weight] = Field(default_factory=dict)
    """Of the rows, those that an objective named here is asked of (each n-th, n a whole number): what has been learnt
    is kept up at a part of its cost."""
    distances: Literal["half", "every"] = "half"
    """Of blank_copy, chunks between a token and the blank that asks for it: half of all, or each in turn."""
    max_targets: Count | Weight | None = None
    """Of blank_copy, only the first so many tokens of each chunk are asked for, which may grow over the stage: a slot
    that holds many tokens is learnt to be read a few places at a time (LOG.md). All by default."""
    random_share: Share | Weight = 0.0
    """Share of blank_copy's tokens that are any others: facts that no text would say have to be kept too."""
    dropout_share: Share = 0.5
    """Share of the second half's tokens that token_dropout hides."""

    @property
    def mixture(self) -> Mixture:
        """The objectives with their weights."""
        # imported here: torch comes with it, and reading settings must not wait for that
        from memlm.objectives import Mixture

        return Mixture({n: w.ramp if isinstance(w, Weight) else w for n, w in self.objectives.items()})

    @property
    def draws_random(self) -> bool:
        """Whether blank_copy's tokens are ever others than the text's."""
        share = self.random_share
        return max(share.start, share.end) > 0 if isinstance(share, Weight) else share > 0

    @property
    def changes_chunks(self) -> ObjectiveName | None:
        """An objective whose chunks are not the text's own, so that kept memories are not theirs; None without one."""
        changed: dict[ObjectiveName, bool] = {
            "token_dropout": True,
            "blank_copy": self.draws_random,
        }
        return next((name for name in self.objectives if changed.get(name)), None)

    def random_share_at(self, step: int) -> float:
        """Share of blank_copy's tokens that are any others at a step of the stage, the first being 0."""
        share = self.random_share
        return share.ramp.at(step) if isinstance(share, Weight) else share

    def max_targets_at(self, step: int) -> int | None:
        """Of each chunk, tokens that blank_copy asks for at a step of the stage, the first being 0; None for all."""
        asked = self.max_targets
        return max(1, round(asked.ramp.at(step))) if isinstance(asked, Weight) else asked

    def row_interval_at(self, objective: str, step: int) -> int:
        """An objective is asked of each n-th row: n at a step of the stage, the first being 0."""
        share = {str(name): value for name, value in self.row_share.items()}.get(objective, 1.0)
        return round(1 / (share.ramp.at(step) if isinstance(share, Weight) else share))

    @model_validator(mode="after")
    def _fits(self) -> Stage:
        if not self.objectives:
            raise ConfigError(f"stage '{self.name}' has no objectives; name at least one, such as next_token.")
        self._check_row_share()
        share = self.random_share
        if isinstance(share, Weight) and max(share.start, share.end) > 1:
            raise ConfigError(
                f"random_share of stage '{self.name}' (from {share.start} to {share.end}) must be between 0 and 1."
            )
        for end in ("start", "end"):
            if not sum(getattr(w, end) if isinstance(w, Weight) else w for w in self.objectives.values()) > 0:
                raise ConfigError(
                    f"the weights of stage '{self.name}' sum to 0 at its {end}; at least one must be above 0."
                )
        return self

    def _check_row_share(self) -> None:
        for name, share in self.row_share.items():
            ends = (share.start, share.end) if isinstance(share, Weight) else (share, share)
            if not 0 < min(ends) <= max(ends) <= 1:
                raise ConfigError(
                    f"row_share of {name} in stage '{self.name}' (from {ends[0]} to {ends[1]}) must lie above 0 and "
                    "not above 1."
                )
            if name not in self.objectives or name == "reconstruction":
                what = "which reads the others' rows" if name == "reconstruction" else "which it does not ask for"
                raise ConfigError(f"row_share of stage '{self.name}' names {name}, {what}; leave it out.")
        if self.row_share and self.objectives.keys() - {"reconstruction"} <= self.row_share.keys():
            raise ConfigError(
                f"row_share of stage '{self.name}' leaves rows that nothing is asked of; give one objective all."
            )


class MemoryRunConfig(Settings):
    """Everything that decides a memory model's run."""

    kind: Literal["memory"] = "memory"
    """What kind of run this is."""
    recipe: str = "custom"
    """Name of the recipe this began as."""
    encoder_run: str | None = None
    """Run folder whose encoder is used, frozen; its text, tokenizer and split come with it."""
    data: DataConfig = Field(default_factory=lambda: DataConfig(short_rows=0.0))
    """Text and tokens."""
    model: MemoryModelSettings = Field(default_factory=MemoryModelSettings)
    """The memory model."""
    stages: tuple[Stage, ...] = Field(
        default_factory=lambda: (Stage(name="next_token", objectives={"next_token": 1.0}, steps=1200),)
    )
    """What is learnt, one after the other."""
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    """Batch, rates, seed; how long, the stages say."""

    @property
    def asks_reconstruction(self) -> bool:
        """Whether any stage needs a head of the memories' own."""
        return any("reconstruction" in stage.objectives for stage in self.stages)

    @model_validator(mode="after")
    def _fits(self) -> MemoryRunConfig:
        if not self.stages:
            raise ConfigError("stages (none) must hold at least one stage.")
        if self.encoder_run is not None and self.data.tokenizer is not None:
            raise ConfigError(
                f"data.tokenizer ('{self.data.tokenizer}') has no place beside encoder_run ('{self.encoder_run}'), "
                "whose encoder reads its own tokenizer's tokens; leave it out."
            )
        self._check_recurrent()
        names = [stage.name for stage in self.stages]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ConfigError(f"two stages are named '{sorted(twice)[0]}'; give each a name of its own.")
        self._check_row_intervals()
        asks = {name for stage in self.stages for name in stage.objectives}
        copies = asks & {"copy", "token_dropout"} | {
            "blank_copy" for stage in self.stages if "blank_copy" in stage.objectives and stage.distances == "half"
        }
        if copies and self.model.num_chunks % 2:
            raise ConfigError(
                f"num_chunks ({self.model.num_chunks}) must be even for {sorted(copies)[0]}: "
                "the second half of the chunks repeats the first."
            )
        if "blank_copy" in asks and self.model.num_chunks == 1:
            raise ConfigError("num_chunks (1) must be at least 2 for blank_copy: text and blanks.")
        return self

    def _check_row_intervals(self) -> None:
        """Every step asks every objective of one row at least."""
        rows = self.training.batch_size
        for stage in self.stages:
            for name in stage.row_share:
                longest = max(stage.row_interval_at(name, step) for step in (0, stage.steps))
                if longest > rows:
                    raise ConfigError(
                        f"row_share of {name} in stage '{stage.name}' asks each {longest}th row, more than "
                        f"training.batch_size ({rows}); raise either."
                    )

    def _check_recurrent(self) -> None:
        if self.model.memory != "recurrent":
            return
        if self.encoder_run is not None:
            raise ConfigError(
                f"encoder_run ('{self.encoder_run}') has no place in recurrent memory, which has no encoder."
            )
        for name, lacks in (("learned_positions", "slots"), ("blank_head", "blanks of its own")):
            if getattr(self.model, name):
                raise ConfigError(f"{name} (true) has no place in recurrent memory, which has no {lacks}.")
        for stage in self.stages:
            if stage.train != "all" or "reconstruction" in stage.objectives:
                what = f"train ('{stage.train}')" if stage.train != "all" else "reconstruction"
                raise ConfigError(f"{what} of stage '{stage.name}' has no place in recurrent memory; leave it out.")

    @property
    def steps(self) -> int:
        """Updates of all stages together."""
        return sum(stage.steps for stage in self.stages)

    def steps_of(self, objective: ObjectiveName) -> int:
        """Updates that ask for this objective; those of all stages where none does."""
        return sum(stage.steps for stage in self.stages if objective in stage.objectives) or self.steps
