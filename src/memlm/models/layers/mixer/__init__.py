"""The masked mixer, registered with transformers' Auto classes."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from memlm.models.layers.mixer.configuration import MixerConfig
from memlm.models.layers.mixer.modeling import MixerForCausalLM, MixerModel

AutoConfig.register(MixerConfig.model_type, MixerConfig, exist_ok=True)
AutoModel.register(MixerConfig, MixerModel, exist_ok=True)
AutoModelForCausalLM.register(MixerConfig, MixerForCausalLM, exist_ok=True)

__all__ = ["MixerConfig", "MixerForCausalLM", "MixerModel"]
