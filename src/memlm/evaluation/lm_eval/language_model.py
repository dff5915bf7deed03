"""A memory model as lm-evaluation-harness knows models: context beyond a window of tokens is read as memories.

    context  [ chunk | chunk | chunk | ... | newest tokens ]  continuation
              └─ whole chunks older than `memory_after` tokens: memories, nothing, or their tokens

Without memories a request goes through the harness's own `HFLM`, so that figures of the plain decoder are its figures.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from memlm.errors import UserError
from memlm.models import MemoryModelForCausalLM
from memlm.models.memory.adapter import plain_decoder
from memlm.models.memory.prompt import Piece, span_of

Reading = Literal["memory", "without", "full"]
"""What becomes of old context: memories, nothing, or tokens like the rest."""
Request = tuple[tuple[str, str] | None, list[int], list[int]]
"""Of the harness: texts, and the tokens of context and continuation."""
_Harness: Any = HFLM  # its decorator hides what it is from type checkers
_KEPT = 4096
"""Memories of chunks, held for requests that share a context."""


class MemoryLM(_Harness):
    """The harness's model class around a memory model.

    Attributes:
        reading: how old context is read now; may be set between evaluations.
        remembered: requests that read memories since `reset`.
        memories: chunks that they read as memories, all together.
        longest: tokens of the longest context since `reset`.
    """

    def __init__(
        self,
        model: MemoryModelForCausalLM,
        tokenizer: PreTrainedTokenizerBase,
        *,
        memory_after: int = 256,
        reading: Reading = "memory",
        batch_size: int = 8,
    ) -> None:
        """Around a model that is in memory already.

        Args:
            model: whose decoder is evaluated.
            tokenizer: of the decoder.
            memory_after: newest tokens that stay tokens, at least.
            reading: of what is older.
            batch_size: requests side by side.

        Raises:
            UserError: a model whose layout has no prompts, or a window that the decoder has no positions for.
        """
        quiet = logging.getLogger("lm_eval.models.huggingface")
        level = quiet.level
        quiet.setLevel(logging.ERROR)  # it warns of every setting that a model in memory makes void
        decoder = plain_decoder(model.decoder)
        super().__init__(pretrained=decoder.eval(), tokenizer=tokenizer, batch_size=batch_size)
        quiet.setLevel(level)
        self.memory_model = model.eval()
        self.chunk_length = model.config.chunk_length
        self.positions = int(model.config.decoder_config.max_position_embeddings)
        if not 1 <= memory_after < self.positions:
            raise UserError(
                f"memory_after ({memory_after}) must lie between 1 and {self.positions - 1}: the decoder has "
                f"{self.positions} positions."
            )
        self.memory_after = memory_after
        self.reading: Reading = reading
        self.kept: dict[tuple[int, ...], Tensor] = {}
        model.prompt([[[0]]])  # says now if this model has no prompts
        self.reset()

    def reset(self) -> None:
        """Count anew."""
        self.remembered = self.memories = self.longest = 0

    def old_chunks(self, context: Sequence[int]) -> int:
        """Whole chunks of a context that stand before its newest `memory_after` tokens."""
        return max(0, len(context) - self.memory_after) // self.chunk_length

    def pieces(self, context: Sequence[int], *, after: int) -> list[Piece]:
        """What the decoder reads of a context, as `reading` says; `after` tokens follow it.

        Raises:
            UserError: more than the decoder has positions for (the harness would cut it without a word).
        """
        self.longest = max(self.longest, len(context))
        old = 0 if self.reading == "full" else self.old_chunks(context)
        found: list[Piece] = [list(context[old * self.chunk_length :])]
        if old and self.reading == "memory":
            found.insert(0, self._remember(context, old))
        taken = span_of(self.memory_model.config, found) + after
        if taken > self.positions:
            raise UserError(
                f"a context of {len(context)} tokens takes {taken} decoder positions (read as '{self.reading}') and "
                f"there are {self.positions}; lower --memory-after, or leave this reading or task out."
            )
        return found

    @torch.inference_mode()
    def _remember(self, context: Sequence[int], chunks: int) -> Tensor:
        length = self.chunk_length
        keys = [tuple(context[i * length : (i + 1) * length]) for i in range(chunks)]
        fresh = [key for key in dict.fromkeys(keys) if key not in self.kept]
        if fresh:
            ids = torch.tensor(fresh, device=self.memory_model.device)[None]
            self.kept.update(zip(fresh, self.memory_model.encode_chunks(ids, torch.ones_like(ids))[0], strict=True))
        found = torch.stack([self.kept[key] for key in keys])
        while len(self.kept) > _KEPT:
            del self.kept[next(iter(self.kept))]
        self.remembered += 1
        self.memories += chunks
        return found

    def _loglikelihood_tokens(
        self, requests: Any, disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """Log-probability of each continuation, and whether it is the greedy one."""
        wanted = cast(list[Request], list(requests))
        read = [self.pieces(context, after=len(continuation) - 1) for _, context, continuation in wanted]
        behind = [i for i, pieces in enumerate(read) if len(pieces) > 1]
        plain = [i for i, pieces in enumerate(read) if len(pieces) == 1]
        found: dict[int, tuple[float, bool]] = {}
        if plain:
            asked = [(wanted[i][0], cast(list[int], read[i][0]), wanted[i][2]) for i in plain]
            answers = super()._loglikelihood_tokens(
                cast(Any, asked), disable_tqdm=disable_tqdm, override_bs=override_bs
            )
            found.update(zip(plain, answers, strict=True))
        size = int(self.batch_size)
        # the longest first, as the harness does: time left is then over- and never underestimated
        behind.sort(key=lambda i: -span_of(self.memory_model.config, read[i]))
        for first in tqdm(range(0, len(behind), size), desc="Behind memories", disable=disable_tqdm or not behind):
            rows = behind[first : first + size]
            found.update(zip(rows, self._behind([read[i] for i in rows], [wanted[i][2] for i in rows]), strict=True))
        return [found[i] for i in range(len(wanted))]

    @torch.inference_mode()
    def _behind(self, rows: Sequence[list[Piece]], continuations: Sequence[list[int]]) -> list[tuple[float, bool]]:
        longer = [
            [*pieces[:-1], [*cast(list[int], pieces[-1]), *continuation[:-1]]]
            for pieces, continuation in zip(rows, continuations, strict=True)
        ]
        prompt = self.memory_model.prompt(longer)
        inputs = self.memory_model.prepare_inputs_for_generation(**prompt, use_cache=False)
        asked = max(map(len, continuations))
        logits = self.memory_model(**inputs, logits_to_keep=asked).logits.float().log_softmax(-1)
        found: list[tuple[float, bool]] = []
        for row, continuation in zip(logits, continuations, strict=True):
            ids = torch.tensor(continuation, device=row.device)
            own = row[-len(ids) :]
            nats = float(own.gather(-1, ids[:, None]).sum())
            found.append((nats, bool((own.argmax(-1) == ids).all())))
        return found

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Of whole texts: each chunk behind all that stands before it; as the harness does it where all are tokens."""
        if self.reading == "full":
            return super().loglikelihood_rolling(requests, disable_tqdm)
        asked: list[Request] = []
        owners: list[int] = []
        for owner, request in enumerate(requests):
            ids = [self.prefix_token_id, *self.tok_encode(request.args[0])]
            for start in range(1, len(ids), self.chunk_length):
                asked.append((None, ids[:start], ids[start : start + self.chunk_length]))
                owners.append(owner)
        found = [0.0] * len(requests)
        for owner, (nats, _) in zip(owners, self._loglikelihood_tokens(asked, disable_tqdm), strict=True):
            found[owner] += nats
        return found

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """What is written behind each context, up to the first of its stops."""
        asked = [cast(tuple[str, dict[str, Any]], request.args) for request in requests]
        rooms = [cast(Any, normalize_gen_kwargs(o, self.max_gen_toks))["max_gen_toks"] for _, o in asked]
        read = [self.pieces(self.tok_encode(text), after=n) for (text, _), n in zip(asked, rooms, strict=True)]
        if self.reading == "full":
            return super().generate_until(requests, disable_tqdm)
        rows = tqdm(zip(read, asked, strict=True), total=len(read), desc="Writing", disable=disable_tqdm)
        return [self._write(pieces, options) for pieces, (_, options) in rows]

    @torch.inference_mode()
    def _write(self, pieces: list[Piece], asked: dict[str, Any]) -> str:
        options = cast(dict[str, Any], normalize_gen_kwargs(asked, self.max_gen_toks))
        eos = self.tok_decode(self.eot_token_id, skip_special_tokens=False)
        stops = handle_stop_sequences(options.pop("until", None), eos=eos)
        room, prompt = options.pop("max_gen_toks"), self.memory_model.prompt([pieces])
        options.setdefault("do_sample", False)
        found = cast(Any, self.memory_model).generate(
            **prompt,
            **{name: value for name, value in options.items() if name != "temperature" or options["do_sample"]},
            max_new_tokens=room,
            stop_strings=stops,
            tokenizer=self.tokenizer,
            pad_token_id=self.tokenizer.pad_token_id,
            eos_token_id=self.eot_token_id,
        )
        written = self.tok_decode(found[0, prompt["input_ids"].shape[1] :].tolist())
        return postprocess_generated_text(generation=written, stop=stops, think_end_token=None)
