"""`set_trainable` gives gradients to the part of a model that it names, and to nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from memlm.errors import ConfigError
from memlm.models import TextAutoencoder, TextAutoencoderConfig
from memlm.models.base import TRAINABLE_PARTS
from tests.models.test_memory import memory_model
from tests.models.test_passage import encoder as passage_encoder
from tests.models.test_pretrained import around
from tests.models.test_recurrent import recurrent
from tests.variants import MIXER_DECODER, TINY


def trainable(model: Any) -> set[str]:
    return {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("freeze_encoder", [False, True])
@pytest.mark.parametrize("part", TRAINABLE_PARTS)
def test_parts_of_a_memory_model(part: str, freeze_encoder: bool) -> None:
    model = memory_model("a head for blanks").train()
    parts = trainable(model)
    assert parts == {"encoder", "decoder", "readout", "blank_head"}
    frozen = part != "all" or freeze_encoder
    expected = parts - ({"encoder"} if frozen else set()) - ({"decoder"} if part == "readout" else set())
    for _ in range(2):
        model.set_trainable(part, freeze_encoder=freeze_encoder)
        assert trainable(model) == expected
        assert model.training
        assert model.encoder.training != frozen
        assert model.config.freeze_encoder == frozen
    model.set_trainable()
    assert trainable(model) == parts
    assert model.encoder.training


def test_the_configuration_limits_what_learns() -> None:
    model, _ = around("llama")
    for part, adapters in (("all", True), ("decoder", True), ("readout", False)):
        model.set_trainable(part, freeze_encoder=True)
        learning = [name for name, p in model.decoder.named_parameters() if p.requires_grad]
        assert all("lora_" in name for name in learning)
        assert bool(learning) == adapters


def test_recurrent_models_are_trained_whole_in_every_part() -> None:
    model = recurrent()
    for part in TRAINABLE_PARTS:
        model.set_trainable(part, freeze_encoder=True)
        assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("model", [TextAutoencoder(TextAutoencoderConfig(**TINY)), passage_encoder(), memory_model()])
def test_unknown_parts(model: Any) -> None:
    model.requires_grad_(False).set_trainable()
    assert all(p.requires_grad for p in model.parameters())
    with pytest.raises(ConfigError, match="unknown part 'decodr'. Did you mean 'decoder'"):
        model.set_trainable("decodr")


def test_a_readout_without_parameters_leaves_nothing_to_train() -> None:
    model = memory_model(readout="repeated", encoder={"bottleneck_size": MIXER_DECODER["hidden_size"]})
    model.set_trainable("readout")
    assert not trainable(model)
