"""The masked mixer: a transformer whose attention is a learned matrix over positions.

Departures from a Llama-style transformer:
- a head mixes tokens with one trained lower-triangular matrix per tap, the same for every input (arXiv 2602.13466)
- positions are absolute and bounded by `max_position_embeddings`; there is no other positional encoding
- biases everywhere, GELU, LayerNorm, no final norm by default
Departures from the reference code of arXiv 2602.13466:
- the mask is applied in the forward pass and never written into weights, so masked entries get no gradient
- every head has its own matrices; `causal=False` is honoured with any number of heads; shorter inputs are allowed
- generation has a cache: a layer's mixing inputs take the place of keys, and values have no width
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from memlm.errors import ConfigError, UserError
from memlm.models.base import CACHE_NAME, init_weights
from memlm.models.layers.mixer.configuration import MixerConfig

HeadsInput = Float[Tensor, "batch heads tokens channels"]


class TokenMixing(nn.Module):
    """`out[i] = bias[i] + sum over taps and readable j of weight[i, j] * shifted(x[j])`, head by head."""

    def __init__(self, config: MixerConfig) -> None:
        super().__init__()
        length, heads = config.max_position_embeddings, config.num_heads
        self.causal = config.causal
        self.weight = nn.Parameter(torch.empty(heads, config.kernel_size, length, length))
        self.bias = nn.Parameter(torch.empty(heads, length))
        if self.causal:
            self.register_state_dict_post_hook(_keep_lower_triangle)

    def init_own_weights(self) -> None:
        """Initialise weights as torch does for layers of `taps * length` inputs; entries never read are zero."""
        init.zeros_(self.bias)
        fan_in = self.weight.shape[1] * self.weight.shape[-1]
        init.uniform_(self.weight, -(fan_in**-0.5), fan_in**-0.5)
        if self.causal:
            init.copy_(self.weight, self.weight.tril())

    def forward(self, x: HeadsInput) -> HeadsInput:
        """Mix whole rows whose token t stands at position t."""
        batch, heads, tokens, channels = x.shape
        taps = self.weight.shape[1]
        # one matrix product per head: (tokens, taps*tokens) @ (taps*tokens, batch*channels)
        x_HTBC = x.permute(1, 2, 0, 3)
        sources = torch.cat([_shift_channels(x_HTBC, offset) for offset in self.offsets()], dim=1)
        weight = self.weight[:, :, :tokens, :tokens]
        weight = weight.tril() if self.causal else weight
        weight = weight.transpose(1, 2).reshape(heads, tokens, taps * tokens)
        mixed = weight @ sources.reshape(heads, taps * tokens, batch * channels)
        mixed = mixed + self.bias[:, :tokens, None]
        return mixed.view(heads, tokens, batch, channels).permute(2, 0, 1, 3)

    def at_positions(
        self,
        x: HeadsInput,
        rows: Int[Tensor, "batch queries"],
        columns: Int[Tensor, "batch tokens"],
        readable: Bool[Tensor, "batch tokens"],
    ) -> Float[Tensor, "batch heads queries channels"]:
        """Mix rows whose tokens stand at given positions: padded on the left, or one step of generation."""
        weight = self.weight[:, :, rows[:, :, None], columns[:, None, :]]  # (heads, taps, batch, queries, tokens)
        allowed = readable[:, None, :]
        if self.causal:
            allowed = allowed & (columns[:, None, :] <= rows[:, :, None])
        weight = weight.masked_fill(~allowed, 0.0)
        shifted = torch.stack([_shift_channels(x, offset) for offset in self.offsets()])
        mixed = torch.einsum("hkbqt,kbhtc->bhqc", weight, shifted)
        return mixed + self.bias[:, rows].permute(1, 0, 2)[..., None]

    def offsets(self) -> range:
        """Return the offset of each tap along the channels ('same' padding, an even kernel's extra tap right)."""
        taps = self.weight.shape[1]
        return range(-((taps - 1) // 2), taps - (taps - 1) // 2)


class MixerBlock(nn.Module):
    """x + token mixing of LN(x), then x + feed-forward of LN(x)."""

    def __init__(self, config: MixerConfig, layer_index: int) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size or 4 * config.hidden_size
        self.layer_index = layer_index
        self.num_heads = config.num_heads
        headed = config.num_heads > 1
        self.mixing_norm = nn.LayerNorm(width)
        self.project_in = nn.Linear(width, width) if headed else nn.Identity()
        self.mixing = TokenMixing(config)
        self.project_out = nn.Linear(width, width) if headed else nn.Identity()
        self.feed_forward_norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, inner)
        self.contract = nn.Linear(inner, width)

    def forward(
        self, x: Float[Tensor, "batch tokens width"], positions: ChunkPositions
    ) -> Float[Tensor, "batch tokens width"]:
        """Apply one block to tokens at the given positions."""
        heads_in = self.project_in(self.mixing_norm(x)).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        mixed = positions.mix(self.mixing, heads_in, self.layer_index)
        x = x + self.project_out(mixed.transpose(1, 2).flatten(-2))
        return x + self.contract(F.gelu(self.expand(self.feed_forward_norm(x))))


class ChunkPositions(NamedTuple):
    """Positions of the tokens of one forward pass, and which of them may be read.

    `positions` None means row by row 0, 1, 2, ... with nothing kept from before: the fast path of training.
    """

    positions: Int[Tensor, "batch queries"] | None
    readable: Bool[Tensor, "batch tokens"] | None
    cache: Cache | None = None
    columns: Int[Tensor, "batch tokens"] | None = None

    def mix(self, mixing: TokenMixing, x: HeadsInput, layer_index: int) -> HeadsInput:
        """Mix the tokens of this pass with those of the cache."""
        if self.cache is not None:
            x, _ = self.cache.update(x, x[..., :0], layer_index)
        if self.readable is not None:
            # not a product with the mask: what stands at masked positions may be infinite
            x = x.masked_fill(~self.readable[:, None, :, None], 0.0)
        if self.positions is None:
            return mixing(x)
        readable = self.readable if self.readable is not None else _all_true(x)
        columns = _columns(readable) if self.columns is None else self.columns
        return mixing.at_positions(x, self.positions, columns, readable)


class MixerPreTrainedModel(PreTrainedModel):
    """Common base of the mixer family: initialisation and what transformers may do with it."""

    config: MixerConfig
    config_class = MixerConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = False
    _no_split_modules = ["MixerBlock"]  # noqa: RUF012

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        init_weights(module)


class MixerModel(MixerPreTrainedModel):
    """Mixer blocks over token embeddings, without a head."""

    def __init__(self, config: MixerConfig, *, with_embeddings: bool = True) -> None:
        super().__init__(config)
        sizes = (config.vocab_size, config.hidden_size, config.pad_token_id)
        self.embed_tokens = nn.Embedding(*sizes) if with_embeddings else None
        self.layers = nn.ModuleList(MixerBlock(config, i) for i in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size) if config.final_norm else nn.Identity()
        self.post_init()

    def forward(
        self,
        input_ids: Int[Tensor, "batch tokens"] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "rows tokens"] | None = None,
        cache: Cache | None = None,
        inputs_embeds: Float[Tensor, "batch tokens width"] | None = None,
        use_cache: bool | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Return the hidden states (batch, tokens, width) of the tokens given, earlier ones read from the cache.

        Without `position_ids` a token stands at the number of readable tokens before it. With them, columns are
        consecutive and end at the last position given, masked ones included (unused memory slots keep their place).
        `past_key_values` is the name of `cache` in transformers before 5.24.

        Raises:
            UserError: both or neither of `input_ids` and `inputs_embeds`; more tokens than positions.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise UserError("give exactly one of input_ids and inputs_embeds.")
        if inputs_embeds is None and self.embed_tokens is None:
            raise UserError("this mixer has no token embeddings; give inputs_embeds.")
        hidden = cast(nn.Module, self.embed_tokens)(input_ids) if inputs_embeds is None else inputs_embeds
        cache = past_key_values if cache is None else cache
        if use_cache and cache is None:
            cache = DynamicCache()
        positions = self._chunk_positions(hidden, attention_mask, position_ids, cache)
        for layer in self.layers:
            hidden = layer(hidden, positions)
        return cast(Any, BaseModelOutputWithPast)(last_hidden_state=self.norm(hidden), **{CACHE_NAME: cache})

    def _chunk_positions(
        self, hidden: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None, cache: Cache | None
    ) -> ChunkPositions:
        batch, tokens = hidden.shape[:2]
        seen = cache.get_seq_length() if cache is not None else 0
        total = seen + tokens
        readable = None if attention_mask is None else attention_mask[:, :total].bool()
        if position_ids is None:
            self._check_beyond(total if attention_mask is None else int(attention_mask.sum(-1).max()))
            if seen == 0 and not _padded_on_left(readable):
                return ChunkPositions(None, readable, cache)
            positions = _columns(readable if readable is not None else _all_true(hidden, total))[:, seen:]
            return ChunkPositions(positions, readable, cache)
        positions = position_ids[:, -tokens:].expand(batch, -1)
        self._check_beyond(int(positions.max()) + 1)
        columns = positions[:, -1:] - torch.arange(total - 1, -1, -1, device=hidden.device)
        if seen == 0 and bool((columns[:, 0] == 0).all()) and torch.equal(columns, positions):
            return ChunkPositions(None, readable, cache)
        return ChunkPositions(positions, readable, cache, columns.clamp(min=0))

    def _check_beyond(self, tokens: int) -> None:
        longest = self.config.max_position_embeddings
        if tokens > longest:
            raise UserError(
                f"{tokens} tokens do not fit this mixer's {longest} positions; cut the input or train a longer one."
            )


class MixerForCausalLM(MixerPreTrainedModel, GenerationMixin):
    """The mixer as a language model: next-token logits, loss and `generate()`.

    Raises:
        ConfigError: `causal=False`, which cannot predict what it sees.
    """

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: MixerConfig) -> None:
        super().__init__(config)
        if not config.causal:
            raise ConfigError("causal (False) must be True for a language model; use MixerModel for a two-sided mixer.")
        self.model = MixerModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Int[Tensor, "batch tokens"] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "rows tokens"] | None = None,
        cache: Cache | None = None,
        inputs_embeds: Float[Tensor, "batch tokens width"] | None = None,
        labels: Int[Tensor, "batch tokens"] | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Return logits (batch, tokens, vocabulary), and the mean loss in nats of labels; they are not shifted."""
        cache = past_key_values if cache is None else cache
        outputs = self.model(input_ids, attention_mask, position_ids, cache, inputs_embeds, use_cache)
        logits = self.lm_head(outputs.last_hidden_state[:, -logits_to_keep:])
        loss = None
        if labels is not None:
            loss = cast(Any, self.loss_function)(logits, labels, vocab_size=self.config.vocab_size, **kwargs)
        kept = {CACHE_NAME: outputs.get(CACHE_NAME)}
        return cast(Any, CausalLMOutputWithPast)(loss=loss, logits=logits, **kept)


def _keep_lower_triangle(module: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]) -> None:
    """Keep entries that are never read out of checkpoints; optimisers of whole matrices (Muon) move them."""
    state[prefix + "weight"] = state[prefix + "weight"].tril()


def _shift_channels(x: Tensor, offset: int) -> Tensor:
    """`out[..., c] = x[..., c + offset]`, zeros beyond the edge."""
    return x if offset == 0 else F.pad(x, (-offset, offset))


def _padded_on_left(readable: Tensor | None) -> bool:
    """Return whether any row has a token after a masked position."""
    return readable is not None and bool((readable[:, 1:] & ~readable[:, :-1]).any())


def _columns(readable: Tensor) -> Tensor:
    """Return the position of each column: the number of readable tokens before it."""
    return (readable.long().cumsum(-1) - 1).clamp(min=0)


def _all_true(x: Tensor, tokens: int | None = None) -> Tensor:
    return torch.ones(x.shape[0], tokens or x.shape[-2], dtype=torch.bool, device=x.device)
