"""An encoder of passages, trained on next-token prediction or retrieval."""

from transformers import AutoConfig, AutoModel

from memlm.models.passage.configuration import PassageEncoderConfig
from memlm.models.passage.modeling import PassageEncoder

AutoConfig.register(PassageEncoderConfig.model_type, PassageEncoderConfig, exist_ok=True)
AutoModel.register(PassageEncoderConfig, PassageEncoder, exist_ok=True)

__all__ = ["PassageEncoder", "PassageEncoderConfig"]
