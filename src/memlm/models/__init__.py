"""Models: mixer, text autoencoder, memory models, passage encoder and probe, registered with the Auto classes."""

from typing import Any

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from memlm.models.autoencoder.configuration import TextAutoencoderConfig
from memlm.models.autoencoder.modeling import TextAutoencoder
from memlm.models.documents import AutoencoderOutput, MemoryModelOutput
from memlm.models.layers.mixer.configuration import MixerConfig
from memlm.models.layers.mixer.modeling import MixerForCausalLM, MixerModel
from memlm.models.memory.configuration import ChunkEncoderConfig, MemoryModelConfig
from memlm.models.memory.encoder import ChunkEncoder, encoder_of
from memlm.models.memory.modeling import MemoryModelForCausalLM
from memlm.models.passage import PassageEncoder, PassageEncoderConfig
from memlm.models.probe.modeling import ProbeConfig, ProbeDecoder
from memlm.models.recurrent import RecurrentMemoryConfig, RecurrentMemoryForCausalLM
from memlm.models.slots.configuration import SlotWriterConfig
from memlm.models.slots.writer import SlotWriter

for _auto, _models in (
    (AutoModel, (MixerModel, TextAutoencoder, ChunkEncoder, PassageEncoder, ProbeDecoder)),
    (AutoModelForCausalLM, (MixerForCausalLM, MemoryModelForCausalLM, RecurrentMemoryForCausalLM)),
):
    for _model in _models:
        _config: Any = _model.config_class
        AutoConfig.register(_config.model_type, _config, exist_ok=True)
        _auto.register(_config, _model, exist_ok=True)
AutoConfig.register(SlotWriterConfig.model_type, SlotWriterConfig, exist_ok=True)

ChunkReader = MemoryModelForCausalLM | RecurrentMemoryForCausalLM
"""Models that read documents chunk by chunk, with earlier chunks as memories."""

__all__ = [
    "AutoencoderOutput",
    "ChunkEncoder",
    "ChunkEncoderConfig",
    "ChunkReader",
    "MemoryModelConfig",
    "MemoryModelForCausalLM",
    "MemoryModelOutput",
    "MixerConfig",
    "MixerForCausalLM",
    "MixerModel",
    "PassageEncoder",
    "PassageEncoderConfig",
    "ProbeConfig",
    "ProbeDecoder",
    "RecurrentMemoryConfig",
    "RecurrentMemoryForCausalLM",
    "SlotWriter",
    "SlotWriterConfig",
    "TextAutoencoder",
    "TextAutoencoderConfig",
    "encoder_of",
]
