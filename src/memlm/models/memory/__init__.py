"""The memory model and its encoder, registered with transformers' Auto classes."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from memlm.models.memory.configuration import ChunkEncoderConfig, MemoryModelConfig
from memlm.models.memory.encoder import ChunkEncoder, encoder_of
from memlm.models.memory.modeling import MemoryModelForCausalLM

AutoConfig.register(ChunkEncoderConfig.model_type, ChunkEncoderConfig, exist_ok=True)
AutoModel.register(ChunkEncoderConfig, ChunkEncoder, exist_ok=True)
AutoConfig.register(MemoryModelConfig.model_type, MemoryModelConfig, exist_ok=True)
AutoModelForCausalLM.register(MemoryModelConfig, MemoryModelForCausalLM, exist_ok=True)

__all__ = ["ChunkEncoder", "ChunkEncoderConfig", "MemoryModelConfig", "MemoryModelForCausalLM", "encoder_of"]
