"""Models: masked mixer, text autoencoder, probe. Importing this registers them with transformers' Auto classes."""

from memlm.models.autoencoder import TextAutoencoder, TextAutoencoderConfig
from memlm.models.mixer import MixerConfig, MixerForCausalLM, MixerModel
from memlm.models.outputs import AutoencoderOutput
from memlm.models.probe import ProbeConfig, ProbeDecoder

__all__ = [
    "AutoencoderOutput",
    "MixerConfig",
    "MixerForCausalLM",
    "MixerModel",
    "ProbeConfig",
    "ProbeDecoder",
    "TextAutoencoder",
    "TextAutoencoderConfig",
]
