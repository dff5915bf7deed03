"""Models: mixer, text autoencoder, memory models, passage encoder and probe, registered with the Auto classes."""

from memlm.models.autoencoder import TextAutoencoder, TextAutoencoderConfig
from memlm.models.documents import AutoencoderOutput, MemoryModelOutput
from memlm.models.layers.mixer import MixerConfig, MixerForCausalLM, MixerModel
from memlm.models.memory import ChunkEncoder, ChunkEncoderConfig, MemoryModelConfig, MemoryModelForCausalLM, encoder_of
from memlm.models.passage import PassageEncoder, PassageEncoderConfig
from memlm.models.probe import ProbeConfig, ProbeDecoder
from memlm.models.recurrent import RecurrentMemoryConfig, RecurrentMemoryForCausalLM

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
    "TextAutoencoder",
    "TextAutoencoderConfig",
    "encoder_of",
]
