"""Models: the masked mixer and the text autoencoder. Importing this registers them with transformers' Auto classes."""

from memlm.models.autoencoder import TextAutoencoder, TextAutoencoderConfig
from memlm.models.mixer import MixerConfig, MixerForCausalLM, MixerModel
from memlm.models.outputs import AutoencoderOutput

__all__ = [
    "AutoencoderOutput",
    "MixerConfig",
    "MixerForCausalLM",
    "MixerModel",
    "TextAutoencoder",
    "TextAutoencoderConfig",
]
