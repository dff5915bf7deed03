"""A pretrained decoder that reads memories of texts, without any training."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, cast, overload

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from memlm.chunking import padded
from memlm.data import encode_texts, eos_id, first_token_id, load_documents, load_tokenizer
from memlm.data.given import check_kind, folder_of, list_of_tokens
from memlm.errors import CheckpointError, UserError, Within
from memlm.models.base import CACHE_NAME
from memlm.models.runtime import load_decoder
from memlm.models.slots.attention import use_slot_attention
from memlm.models.slots.configuration import SlotWriterConfig
from memlm.models.slots.encoded import Budget, EncodedTexts, Reader
from memlm.models.slots.injection import Encoded, Injection, KeyValueInjection
from memlm.models.slots.memories import SlotMemories
from memlm.models.slots.rotary import Rotary
from memlm.models.slots.saved import decoder_identity, is_writer_folder, load_writer, save_writer, tokenizer_folder
from memlm.models.slots.slot_cache import SlotCache, behind_memories
from memlm.models.slots.sparser import QueryBank
from memlm.models.slots.states import EncodingSettings
from memlm.models.slots.vector_kinds import InputInjection, new_injection
from memlm.models.slots.vectors import MemoryVectors, VectorInjection

_BANK_TOKENS, _BANK_CHARACTERS = 512, 8192
Texts = str | Sequence[str] | Sequence[Sequence[int]]
"""One text, texts, or texts as token ids."""


class MemoryDecoder:
    """A pretrained decoder, and the memories that it makes of texts and reads.

    A memory of a text is a small set of keys and values for each layer. The decoder itself is untouched: text without
    memories gives its own logits, bit for bit, and its own `generate` goes on behind memories.

    Args:
        decoder: any causal language model of the families Llama, Qwen, Gemma, Mistral, Phi or GPT-2.
        tokenizer: of the decoder.
        settings: how texts are encoded.
        config: of adapters that write memories, where the decoder has some.
        injection: how memories enter the decoder, trained or not; the configuration's by default, untrained.

    Example:
        >>> model = MemoryDecoder.from_pretrained("HuggingFaceTB/SmolLM2-135M-Instruct")
        >>> memories = model.memories(text, tokens_per_memory=8)
        >>> print(model.generate("In short,", memories, max_new_tokens=40)[0])

    Raises:
        ConfigError: a decoder that rotates queries in an unknown way.
    """

    def __init__(
        self,
        decoder: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        settings: EncodingSettings | None = None,
        *,
        config: SlotWriterConfig | None = None,
        injection: Injection | None = None,
    ) -> None:
        use_slot_attention(decoder)
        self.decoder, self.tokenizer = decoder.eval().requires_grad_(False), tokenizer
        self.settings = settings or (EncodingSettings() if config is None else config.encoding_settings)
        first = first_token_id(tokenizer, vocab_size=int(decoder.config.vocab_size))
        self.config = config or SlotWriterConfig(decoder_path=decoder.config.name_or_path, first_token_id=first)
        self.reader = Reader(decoder, first, Rotary(decoder))
        self.injection = (injection or new_injection(self.config, decoder)).requires_grad_(False)
        self._queries: QueryBank | None = None

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str,
        *,
        settings: EncodingSettings | None = None,
        decoder: str | None = None,
        trust_remote_code: bool = False,
        **options: Any,
    ) -> MemoryDecoder:
        """Load a decoder and its tokenizer from a folder or the Hub.

        Args:
            path_or_id: folder or Hub id of a decoder; or a folder that `save_pretrained` wrote, or of a run that
                trained a decoder to write memories, or of one of its checkpoints.
            settings: how texts are encoded.
            decoder: folder or Hub id of the decoder of such a folder, where it has moved.
            trust_remote_code: run Python code that comes with the model.
            options: of `AutoModelForCausalLM.from_pretrained`, such as `dtype`, `device_map` or `gguf_file`.

        Raises:
            CheckpointError: the decoder cannot be loaded, or is not the one that adapters were trained for.
            TokenizerError: its tokenizer cannot be loaded.
            ConfigError: a decoder that rotates queries in an unknown way.
        """
        path_or_id = str(folder_of(path_or_id, name="path_or_id"))
        if is_writer_folder(path_or_id):
            writer = load_writer(path_or_id, decoder=decoder, trust_remote_code=trust_remote_code, **options)
            tokenizer = load_tokenizer(tokenizer_folder(path_or_id))
            return cls(writer.decoder, tokenizer, settings, config=writer.config, injection=writer.injection)
        if Path(path_or_id, "run.json").is_file() and not Path(path_or_id, "config.json").is_file():
            raise CheckpointError(f"the run '{path_or_id}' is not finished; memlm train --resume --out {path_or_id}")
        of_tokenizer = {name: options[name] for name in ("gguf_file", "revision", "subfolder") if name in options}
        base = load_decoder(path_or_id, trust_remote_code=trust_remote_code, **options)
        tokenizer = load_tokenizer(path_or_id, trust_remote_code=trust_remote_code, **of_tokenizer)
        model = cls(base, tokenizer, settings)
        model.config.gguf_file = options.get("gguf_file")
        return model

    @property
    def slot_sizes(self) -> tuple[int, int, int]:
        """The number of layers, of heads of keys and values in each, and of numbers in a key."""
        config = self.decoder.config
        numbers = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
        return int(config.num_hidden_layers), int(heads), int(numbers)

    def fingerprint(self) -> str:
        """Return a hash that tells the decoder, its adapters and its injection's maps, if any, from others."""
        adapters = {n: w for n, w in self.decoder.state_dict().items() if "lora_" in n}
        adapters |= {f"{self.config.injection}.{n}": w for n, w in self.injection.state_dict().items()}
        digest = hashlib.sha256(decoder_identity(self.decoder).encode())
        for name, weight in sorted(adapters.items()):
            digest.update(name.encode() + weight.float().cpu().numpy().tobytes())
        return digest.hexdigest()

    def untrained(self) -> MemoryDecoder:
        """Return the same decoder as if it had not been trained: keys and values of its own are its memories."""
        other = copy.copy(self)
        other.reader, other.injection = replace(self.reader, adapted=False), KeyValueInjection()
        return other

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the settings, the tokenizer and the adapters, if any, to a folder that `from_pretrained` reads.

        The decoder's own weights are not written; the folder names the decoder that it belongs to.

        Raises:
            CheckpointError: the folder exists, or cannot be written.
        """
        config = copy.deepcopy(self.config)
        config.encoding = asdict(self.settings)
        config.decoder_identity = config.decoder_identity or decoder_identity(self.decoder)
        save_writer(folder, config, self.decoder, self.injection, self.tokenizer)

    @overload
    def encode(self, texts: Texts, *, mode: Literal["joint"], **settings: Any) -> EncodedTexts: ...

    @overload
    def encode(self, texts: Texts, **settings: Any) -> Encoded: ...

    @torch.no_grad()
    def encode(self, texts: Texts, **settings: Any) -> Encoded:
        """Let the decoder read texts; `at` of the result makes memories of any number of slots.

        All that the decoder computed is kept. If the number of slots is known, `memories` needs less memory.

        Args:
            texts: one text, texts, or token ids of texts, without special tokens.
            settings: fields of `EncodingSettings` that differ from the model's, such as `mode="chunks"`.

        Raises:
            UserError: no text, an empty one, or one that is longer than the decoder can read.
        """
        found = self._settings(settings)
        return self._injection(found).encode(self.reader, *self._texts(texts), found)

    @torch.no_grad()
    def memories(
        self,
        texts: Texts,
        *,
        tokens_per_memory: int | float | None = None,
        slots: int | None = None,
        start: int = 0,
        **settings: Any,
    ) -> SlotMemories:
        """Let the decoder read texts and return memories of them.

        Args:
            texts: one text, texts, or token ids of texts, without special tokens.
            tokens_per_memory: tokens for each slot.
            slots: slots of each text, instead.
            start: number of tokens before these texts, where they are parts of longer ones.
            settings: fields of `EncodingSettings` that differ from the model's.

        Raises:
            UserError: as `encode` and `EncodedTexts.at`.
        """
        budget = Budget(tokens_per_memory=tokens_per_memory, slots=slots)
        found = self._settings(settings)
        rows = self._texts(texts, start=start)
        return self._injection(found).memories(self.reader, *rows, found, budget, start=start)

    @torch.no_grad()
    def fewer(
        self, memories: SlotMemories, *, tokens_per_memory: int | float | None = None, slots: int | None = None
    ) -> SlotMemories:
        """Return memories with fewer slots, which act as the given ones do on queries of the decoder.

        The texts are not needed. The queries are those of the decoder on a bundled text of 512 tokens, which it reads
        when this is called for the first time.

        Args:
            memories: of texts; those that have few enough slots stay as they are.
            tokens_per_memory: tokens for each slot.
            slots: slots of each text, instead.

        Raises:
            UserError: as `EncodedTexts.at`, memories of another decoder, or an injection of vectors, of which each
                number of memories is made from the text.
        """
        self._check(memories)
        if not self.injection.takes_start:
            raise UserError("memories of vectors are not made fewer; make them of the text again.")
        counts = Budget(tokens_per_memory=tokens_per_memory, slots=slots).counts(memories.lengths[:, None] - 1)[:, 0]
        return self._bank().fewer(memories.to(device=self.decoder.device), counts)

    @torch.no_grad()
    def vectors(
        self, texts: Texts, *, tokens_per_memory: int | float | None = None, slots: int | None = None
    ) -> MemoryVectors:
        """Let the decoder read texts in chunks and return one vector for each memory; `from_vectors` reads them.

        Args:
            texts: one text, texts, or token ids of texts, without special tokens.
            tokens_per_memory: tokens for each vector.
            slots: vectors of each text, instead.

        Raises:
            UserError: as `encode` and `EncodedVectors.vectors`, or an injection that stores no vectors.
        """
        found = self._vector_injection().encode(self.reader, *self._texts(texts), replace(self.settings, mode="chunks"))
        return found.vectors(tokens_per_memory=tokens_per_memory, slots=slots)

    @torch.no_grad()
    def from_vectors(self, vectors: MemoryVectors) -> SlotMemories:
        """Return memories of vectors, which the decoder's layers read for it.

        Raises:
            UserError: an injection that stores no vectors.
        """
        return self._vector_injection().read(self.reader, vectors.to(self.decoder.device))

    @torch.no_grad()
    def prompt_embeddings(self, prompts: Texts, vectors: MemoryVectors) -> dict[str, Tensor]:
        """Return arguments with which the decoder goes on behind memories without memlm.

        Args:
            prompts: one prompt for each text, or token ids.
            vectors: of the texts, by the injection `input`.

        Returns:
            inputs_embeds (batch, positions, width), padded on the left; attention_mask (batch, positions).

        Raises:
            UserError: another injection, or another number of prompts than of texts.
        """
        if not isinstance(self.injection, InputInjection):
            raise UserError(
                f"memories of the injection '{self.config.injection}' do not stand in place of tokens; train one with "
                "injection=input."
            )
        ids, mask = self._rows(prompts)
        return self.injection.prompt(self.reader, vectors.to(self.decoder.device), ids, mask)

    def read(self, memories: SlotMemories) -> SlotCache:
        """Return a cache as if the decoder had read the texts; each generation needs a cache of its own.

        Raises:
            UserError: memories of another decoder.
        """
        self._check(memories)
        return SlotCache(memories.to(self.decoder.dtype, self.decoder.device))

    def inputs(self, prompts: Texts, memories: SlotMemories | None = None) -> dict[str, Any]:
        """Return the arguments of the decoder's `forward` and `generate` for prompts behind memories.

        Args:
            prompts: one prompt for each text, or token ids.
            memories: of the texts.

        Returns:
            input_ids (batch, tokens), padded on the left; attention_mask, over the positions of memories and prompt;
            position_ids (batch, tokens); the cache, by the name that this version of transformers gives it.

        Raises:
            UserError: another number of prompts than of texts, or memories of another decoder.
        """
        ids, mask = self._rows(prompts, left=True)
        if memories is None:
            return {"input_ids": ids, "attention_mask": mask.long()}
        self._check(memories)
        return behind_memories(ids, mask, memories.to(self.decoder.dtype, self.decoder.device))

    @torch.no_grad()
    def generate(self, prompts: Texts, memories: SlotMemories | None = None, **options: Any) -> list[str]:
        """Return the decoder's continuations of prompts behind memories.

        Args:
            prompts: one prompt for each text.
            memories: of the texts.
            options: of transformers' `generate`.
        """
        inputs = self.inputs(prompts, memories)
        options.setdefault("pad_token_id", eos_id(self.tokenizer))
        if memories is not None:
            # transformers repeats the prompt for beams and samples, but not a cache that it is given
            repeats = max(options.get("num_beams") or 1, options.get("num_return_sequences") or 1)
            inputs[CACHE_NAME].batch_repeat_interleave(repeats)
        found = cast(Any, self.decoder).generate(**inputs, **options)
        return self.tokenizer.batch_decode(found[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    def _bank(self) -> QueryBank:
        if self._queries is None:
            [ids] = encode_texts(self.tokenizer, [load_documents("sotu", max_documents=1)[0].text[:_BANK_CHARACTERS]])
            most = min(_BANK_TOKENS, int(self.decoder.config.max_position_embeddings) - 2)
            self._queries = QueryBank.of(self.reader, ids[:most], self.settings)
        return self._queries

    def _check(self, memories: SlotMemories) -> None:
        check_kind(memories, SlotMemories, name="memories", instead="what `memories` or `from_vectors` returned")
        given, (layers, heads, _) = memories.layers[0].keys, self.slot_sizes
        if (len(memories.layers), given.shape[1]) != (layers, heads):
            raise UserError(
                f"these memories have {len(memories.layers)} layers of {given.shape[1]} heads and the decoder has "
                f"{layers} of {heads}; they are of another decoder."
            )

    def _injection(self, settings: EncodingSettings) -> Injection:
        # adapters and maps are trained to write chunks; whole texts are read by the decoder as it is
        return self.injection if settings.mode == "chunks" else KeyValueInjection()

    def _vector_injection(self) -> VectorInjection:
        if not isinstance(self.injection, VectorInjection):
            raise UserError(
                "memories of the injection 'kv' are keys and values, not vectors; train one with injection=input, "
                "layer or code."
            )
        return self.injection

    def _settings(self, changes: dict[str, Any]) -> EncodingSettings:
        known = self.settings.__dataclass_fields__
        for name in changes:
            if name not in known:
                raise UserError(f"unknown setting '{name}'; choose from: {', '.join(known)}.")
        return replace(self.settings, **changes)

    def _texts(
        self, texts: Texts, *, start: int = 0
    ) -> tuple[Int[Tensor, "batch tokens"], Bool[Tensor, "batch tokens"]]:
        ids, mask = self._rows(texts)
        most = getattr(self.decoder.config, "max_position_embeddings", None)
        Within(0, 2**31 - 1).check("start", start, whole=True)
        if most is not None and start + ids.shape[1] + 1 >= most:
            raise UserError(
                f"a text of {start + ids.shape[1]} tokens is longer than this decoder can read ({most} positions); "
                "give it in parts."
            )
        return ids, mask

    def _rows(
        self, texts: Texts, *, left: bool = False
    ) -> tuple[Int[Tensor, "batch tokens"], Bool[Tensor, "batch tokens"]]:
        words = int(self.decoder.config.vocab_size)
        of_tokens = isinstance(texts, list | tuple) and bool(texts) and not isinstance(texts[0], str)
        if of_tokens or isinstance(texts, Tensor):
            rows = [list_of_tokens(row, words=words, name=f"texts[{i}]") for i, row in enumerate(texts)]
        else:
            rows = encode_texts(self.tokenizer, cast("Sequence[str]", texts))
        if not rows or not all(rows):
            raise UserError("there is no text, or one of the texts is empty; give at least one token each.")
        wrong = next((token for row in rows for token in row if token >= words), None)
        if wrong is not None:
            raise UserError(f"token {wrong} is none of the decoder's {words}; use its own tokenizer.")
        rows = [row[::-1] if left else row for row in rows]
        # masked positions hold any token that the decoder knows
        ids, mask = padded(rows, length=max(map(len, rows)), pad_token_id=0)
        ids, mask = (x.flip(1) if left else x for x in (ids, mask.bool()))
        return ids.to(self.decoder.device), mask.to(self.decoder.device)
