"""Training of a pretrained decoder to write memories; the teacher is the decoder itself with all tokens in sight.

    row       chunk 0    chunk 1    chunk 2    chunk 3
    written   m0         m1         m2                     each by itself, adapters active
    read                 m0         m0 m1      m0 m1 m2    each chunk but the first, behind the memories before it

The reader is the decoder as it was, without adapters, and so is the teacher, which reads the whole row.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from memlm.models.base import DecoderInside
from memlm.models.documents import DocumentTargets, MemoryModelOutput
from memlm.models.memory.adapter import LoraSettings, add_adapter, set_adapter_trainable, set_adapters_active
from memlm.models.slots.attention import use_slot_attention
from memlm.models.slots.configuration import SlotWriterConfig
from memlm.models.slots.encoded import Reader
from memlm.models.slots.memories import SlotMemories
from memlm.models.slots.rotary import Rotary
from memlm.models.slots.slot_cache import behind_memories
from memlm.models.slots.states import EncodingSettings
from memlm.models.slots.vector_kinds import new_injection
from memlm.objectives import ObjectiveSums
from memlm.shapes import IGNORE_INDEX, Labels, TokenIds, TokenMask


class SlotWriter(DecoderInside):
    """A pretrained decoder with adapters that learn to write memories.

    Args:
        config: settings of the adapters and of their training.
        decoder: the pretrained decoder. It is changed in place, but without memories it computes what it did before.

    Raises:
        ConfigError: adapters that do not fit the decoder, or a decoder that rotates queries in an unknown way.
    """

    config_class = SlotWriterConfig
    config: SlotWriterConfig

    def __init__(self, config: SlotWriterConfig, decoder: PreTrainedModel) -> None:
        super().__init__(config)
        use_slot_attention(decoder)
        self.decoder = decoder.requires_grad_(False)
        self.reader = Reader(decoder, config.first_token_id, Rotary(decoder))
        if config.lora is not None:
            add_adapter(decoder, LoraSettings.of(config.lora))
            set_adapters_active(decoder, False)
        self.injection = new_injection(config, decoder)
        for name, weight in decoder.named_parameters():
            if "lora_" in name:
                weight.data = weight.data.float()  # half precision would lose small steps
        self.unsaved = {name for name in self.state_dict() if name.startswith("decoder.") and "lora_" not in name}
        self._keys_to_ignore_on_save = self.unsaved
        self.set_trainable()

    def set_trainable(self, part: str = "all", *, freeze_encoder: bool = False) -> None:
        """Enable gradients for adapters and the injection's maps, and disable them for the decoder's own weights."""
        super().set_trainable(part, freeze_encoder=freeze_encoder)
        set_adapter_trainable(self.decoder)

    def forward(
        self,
        input_ids: TokenIds,
        attention_mask: TokenMask | None = None,
        labels: Labels | None = None,
        ratio: Int[Tensor, ""] | int = 1,
        fitted: Bool[Tensor, ""] | bool = False,
        certain: Bool[Tensor, "batch tokens"] | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **_: Any,
    ) -> MemoryModelOutput:
        """Compare predictions behind memories with those behind all tokens.

        Args:
            input_ids: (rows, tokens), whole chunks, at least two.
            attention_mask: (rows, tokens), True for text, which begins a row.
            labels: (rows, tokens); predictions are compared at positions whose label is not IGNORE_INDEX.
            ratio: tokens per memory.
            fitted: memories are made by the fit, instead of the keys and values of every so many-th token.
            certain: (rows, tokens), True at positions that are compared with the next token of the row, instead of with
                what is predicted behind all tokens.
            num_items_in_batch: number of compared positions over all accumulated batches and devices.

        Returns:
            The mean divergence KL(all tokens || memories) in nats as `loss`, its sum as `nats`, and the number of
            positions at which both find the same token most probable as `num_correct`. Where a token is certain, all
            tokens count as predicting it with probability 1.
        """
        length = self.config.chunk_length
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        labels = input_ids if labels is None else labels
        # the tokenizer's padding token may lie beyond the decoder's table
        input_ids = input_ids.masked_fill(mask == 0, 0)
        compared = (labels[:, length:] != IGNORE_INDEX) & mask[:, length:].bool()
        with torch.no_grad():
            target = self._logits(self._full(input_ids, mask)[:, length:][compared]).log_softmax(-1)
        memories = self._memories(input_ids, mask, int(ratio), fitted=bool(fitted))
        found = self._logits(self._behind(input_ids, mask, memories)[compared]).log_softmax(-1)
        nats = F.kl_div(found, target, reduction="none", log_target=True).sum(-1)
        best = target.argmax(-1)
        if certain is not None:
            asked, following = (x[:, length:][compared] for x in (certain, input_ids.roll(-1, 1)))
            nats = torch.where(asked, F.nll_loss(found, following, reduction="none"), nats)
            best = torch.where(asked, following, best)
        hits = (found.argmax(-1) == best).sum()
        sums = ObjectiveSums(nats.sum()[None], hits[None].float(), compared.sum()[None].float())
        targets = DocumentTargets(labels=labels, num_items_in_batch=num_items_in_batch)
        return MemoryModelOutput(**cast(Any, targets.results(sums)))

    def _full(self, ids: TokenIds, mask: TokenMask) -> Float[Tensor, "batch tokens width"]:
        """Return the decoder's last hidden states where it reads rows as they are."""
        first, text = F.pad(ids, (1, 0), value=self.config.first_token_id), F.pad(mask.long(), (1, 0), value=1)
        return self.decoder.base_model(input_ids=first, attention_mask=text, use_cache=False).last_hidden_state[:, 1:]

    def _memories(self, ids: TokenIds, mask: TokenMask, ratio: int, *, fitted: bool) -> SlotMemories:
        """Return memories of the first chunk of each row, of the first two, and so on to the last but one."""
        length = self.config.chunk_length
        settings = EncodingSettings(mode="chunks", chunk_length=length, block_length=length)
        encoded = self.injection.encode(self.reader, ids[:, :-length], mask[:, :-length].bool(), settings)
        ends = torch.arange(length, ids.shape[1], length, device=ids.device)
        return encoded.at(tokens_per_memory=ratio).beginnings(ends) if fitted else encoded.beginnings(ends, ratio)

    def _behind(self, ids: TokenIds, mask: TokenMask, memories: SlotMemories) -> Float[Tensor, "batch later width"]:
        """Return the decoder's last hidden states where it reads each chunk but the first behind memories."""
        length = self.config.chunk_length
        chunks, text = (x[:, length:].reshape(-1, length) for x in (ids, mask.bool()))
        inputs = behind_memories(chunks, text, memories.to(self.decoder.dtype, self.decoder.device))
        found = self.decoder.base_model(**inputs).last_hidden_state
        return found.unflatten(0, (len(ids), -1)).flatten(1, 2)

    def _logits(self, hidden: Float[Tensor, "positions width"]) -> Float[Tensor, "positions vocabulary"]:
        logits = cast(Any, self.decoder.get_output_embeddings())(hidden).float()
        cap = getattr(self.decoder.config, "final_logit_softcapping", None)
        return logits if cap is None else cap * torch.tanh(logits / cap)
