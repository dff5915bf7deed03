"""The probe: a decoder that is trained to reconstruct a text from a frozen encoder's vector."""

from transformers import AutoConfig, AutoModel

from memlm.models.probe.configuration import ProbeConfig
from memlm.models.probe.modeling import ProbeDecoder
from memlm.models.probe.start import start_from_vectors

AutoConfig.register(ProbeConfig.model_type, ProbeConfig, exist_ok=True)
AutoModel.register(ProbeConfig, ProbeDecoder, exist_ok=True)

__all__ = ["ProbeConfig", "ProbeDecoder", "start_from_vectors"]
