"""Settings of the retention meter and of the probes that it trains."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from memlm.training.schema import Count, Settings

Size = Literal["small", "medium", "large"]
SIZES: dict[Size, dict[str, int]] = {
    "small": {"hidden_size": 128, "num_layers": 1, "num_heads": 8},
    "medium": {"hidden_size": 192, "num_layers": 2, "num_heads": 16},
    "large": {"hidden_size": 384, "num_layers": 3, "num_heads": 16},
}


class ProbeTraining(Settings):
    """Settings of the training of one probe."""

    size: Size = "medium"
    """Width and depth of the decoder."""
    reads_tokens: bool = False
    """The decoder writes from left to right: each position also reads the tokens before it."""
    readout_rank: Count | None = None
    """Numbers that each position reads out of the vector; by default twice its even share, between 8 and 64."""
    steps: Count = 400
    """Maximum number of updates."""
    batch_size: Count = 128
    """Passages in each update."""
    evaluate_every: Count = 40
    """Steps between evaluations on validation passages."""
    patience: Count = 4
    """Evaluations without a better cross-entropy after which training stops."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 2e-3
    """Peak learning rate of Muon and of AdamW."""


class ProbeSettings(Settings):
    """Settings of a measurement of retention."""

    lengths: tuple[Annotated[int, Field(ge=1, le=4096)], ...] = (32,)
    """Tokens per passage; one point of the capacity curve each."""
    passages: Annotated[int, Field(ge=8)] = 16384
    """Maximum number of training passages."""
    held_out_passages: Annotated[int, Field(ge=1)] = 1024
    """Maximum number of held-out passages; half as many are used for early stopping."""
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Share of documents held out, and again for early stopping."""
    vocabulary: Literal["encoder", "bpe"] = "encoder"
    """Tokens that the probe predicts: the encoder's own, or a BPE of 1,024 trained on the training documents."""
    bits: Literal["none", "fp16", "int8", "int4", "binary"] = "none"
    """Rounding of the vectors before probing."""
    seeds: Annotated[int, Field(ge=1, le=100)] = 1
    """Number of probes whose figures are averaged."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of the split, of the passages and of the first probe."""
    controls: bool = True
    """Train the controls too."""
    one_pass_controls: bool = True
    """Among them those of the probe that predicts all tokens at once, and its positive control."""
    audit: bool = False
    """Count the names, e-mail addresses, card-like numbers, dates, phone numbers and other numbers that are recovered,
    also from the vectors as fp16, int8 and binary."""
    audit_pattern: tuple[str, ...] = ()
    """With --audit: further kinds of entities, each NAME=REGEX as in invoices='INV-[0-9]{6}'."""
    retrieval: bool = False
    """Also measure nDCG@10 of finding held-out passages by their sentences."""
    word_passes: Annotated[int, Field(ge=0)] = 12
    """Greatest number of passes over the training passages of the regression that reads words; 0 for closed form."""
    control_steps: Count = 400
    """Updates of the autoencoder that is the positive control."""
    probe: ProbeTraining = ProbeTraining()
    """Settings of the probe decoder."""
    writer_steps: Annotated[int, Field(ge=0)] = 600
    """Greatest number of updates of the decoders that write from left to right, which usable information is measured
    with; 0 leaves them out."""
    beams: Annotated[int, Field(ge=1, le=64)] = 1
    """Beginnings of a text that are followed at once in writing it."""

    @property
    def roundings(self) -> tuple[str, ...]:
        """Roundings with which databases store vectors, which an audit reads beside unrounded vectors."""
        return ("fp16", "int8", "binary") if self.bits == "none" else ()

    @property
    def writer(self) -> ProbeTraining:
        """Settings of the decoders that write from left to right."""
        rate = self.probe.learning_rate / 2
        changes = {"reads_tokens": True, "steps": self.writer_steps, "batch_size": 64, "learning_rate": rate}
        changes |= {"evaluate_every": 100}
        return self.probe.model_copy(update=changes)

    @property
    def language(self) -> ProbeTraining:
        """Settings of the decoder that learns to write without vectors, from which the others start."""
        return self.writer.model_copy(update={"learning_rate": self.probe.learning_rate})
