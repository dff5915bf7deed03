"""The text autoencoder, registered with transformers' Auto classes."""

from transformers import AutoConfig, AutoModel

from memlm.models.autoencoder.configuration import TextAutoencoderConfig
from memlm.models.autoencoder.modeling import TextAutoencoder

AutoConfig.register(TextAutoencoderConfig.model_type, TextAutoencoderConfig, exist_ok=True)
AutoModel.register(TextAutoencoderConfig, TextAutoencoder, exist_ok=True)

__all__ = ["TextAutoencoder", "TextAutoencoderConfig"]
