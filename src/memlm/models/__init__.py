"""Models: mixer, text autoencoder, passage encoder, probe. Importing this registers them with transformers."""

from memlm.models.autoencoder import TextAutoencoder, TextAutoencoderConfig
from memlm.models.mixer import MixerConfig, MixerForCausalLM, MixerModel
from memlm.models.outputs import AutoencoderOutput
from memlm.models.passage import PassageEncoder, PassageEncoderConfig
from memlm.models.probe import ProbeConfig, ProbeDecoder

__all__ = [
    "AutoencoderOutput",
    "MixerConfig",
    "MixerForCausalLM",
    "MixerModel",
    "PassageEncoder",
    "PassageEncoderConfig",
    "ProbeConfig",
    "ProbeDecoder",
    "TextAutoencoder",
    "TextAutoencoderConfig",
]
