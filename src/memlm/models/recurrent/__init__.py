"""The recurrent memory baseline, registered with transformers' Auto classes."""

from transformers import AutoConfig, AutoModelForCausalLM

from memlm.models.recurrent.configuration import RecurrentMemoryConfig
from memlm.models.recurrent.modeling import RecurrentMemoryForCausalLM

AutoConfig.register(RecurrentMemoryConfig.model_type, RecurrentMemoryConfig, exist_ok=True)
AutoModelForCausalLM.register(RecurrentMemoryConfig, RecurrentMemoryForCausalLM, exist_ok=True)

__all__ = ["RecurrentMemoryConfig", "RecurrentMemoryForCausalLM"]
