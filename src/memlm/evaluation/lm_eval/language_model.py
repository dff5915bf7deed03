"""A memory model as a model of lm-evaluation-harness: context beyond a window of tokens is read as memories.

    context  [ chunk | chunk | chunk | ... | newest tokens ]  continuation
              └─ whole chunks older than `memory_after` tokens: memories, nothing, or their tokens

Requests without memories go through the harness's own `HFLM`, so that the plain decoder's scores are those of `HFLM`.
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
"""How old context is read: as memories, not at all, or as tokens like the rest."""
Request = tuple[tuple[str, str] | None, list[int], list[int]]
"""A request of the harness: texts, and the tokens of context and continuation."""
_Harness: Any = HFLM  # its decorator hides its type from type checkers
_MAX_CACHED = 4096
"""Maximum number of cached chunks' memories, for requests that share a context."""


class MemoryLM(_Harness):
    """The model class of the harness around a memory model.

    Attributes:
        reading: how old context is read; may be set between evaluations.
        num_requests: requests that read memories since `reset`.
        num_memories: chunks that these requests read as memories.
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
        """Wrap a loaded model.

        Args:
            model: the memory model.
            tokenizer: the tokenizer of its decoder.
            memory_after: the minimum number of newest tokens that stay tokens.
            reading: how older tokens are read.
            batch_size: requests in a batch.

        Raises:
            UserError: the model's layout has no prompts, or the decoder has fewer positions than `memory_after`.
        """
        quiet = logging.getLogger("lm_eval.models.huggingface")
        level = quiet.level
        quiet.setLevel(logging.ERROR)  # it warns of every setting that a loaded model makes void
        super().__init__(pretrained=plain_decoder(model.decoder).eval(), tokenizer=tokenizer, batch_size=batch_size)
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
        self.cache: dict[tuple[int, ...], Tensor] = {}
        model.prompt([[[0]]])  # raises now where this model has no prompts
        self.reset()

    def reset(self) -> None:
        """Set all counts to zero."""
        self.num_requests = self.num_memories = self.longest = 0

    def pieces(self, context: Sequence[int], *, after: int) -> list[Piece]:
        """Return the memories and tokens that the decoder reads of a context.

        Args:
            context: token ids.
            after: the number of tokens that follow the context.

        Raises:
            UserError: more positions than the decoder has; the harness would truncate the context silently.
        """
        self.longest = max(self.longest, len(context))
        old = 0 if self.reading == "full" else max(0, len(context) - self.memory_after) // self.chunk_length
        found: list[Piece] = [list(context[old * self.chunk_length :])]
        if old and self.reading == "memory":
            found.insert(0, self._encode(context, old))
        taken = span_of(self.memory_model.config, found) + after
        if taken > self.positions:
            raise UserError(
                f"a context of {len(context)} tokens takes {taken} decoder positions (read as '{self.reading}') and "
                f"there are {self.positions}; lower --memory-after, or leave this reading or task out."
            )
        return found

    @torch.inference_mode()
    def _encode(self, context: Sequence[int], chunks: int) -> Tensor:
        length = self.chunk_length
        keys = [tuple(context[i * length : (i + 1) * length]) for i in range(chunks)]
        missing = [key for key in dict.fromkeys(keys) if key not in self.cache]
        if missing:
            ids = torch.tensor(missing, device=self.memory_model.device)[None]
            self.cache.update(zip(missing, self.memory_model.encode_chunks(ids, torch.ones_like(ids))[0], strict=True))
        found = torch.stack([self.cache[key] for key in keys])
        while len(self.cache) > _MAX_CACHED:
            del self.cache[next(iter(self.cache))]
        self.num_requests += 1
        self.num_memories += chunks
        return found

    def _loglikelihood_tokens(
        self, requests: Any, disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """Return the log-probability of each continuation, and whether it is the greedy one."""
        given = cast(list[Request], list(requests))
        read = [self.pieces(context, after=len(continuation) - 1) for _, context, continuation in given]
        with_memory = [i for i, pieces in enumerate(read) if len(pieces) > 1]
        plain = [i for i, pieces in enumerate(read) if len(pieces) == 1]
        found: dict[int, tuple[float, bool]] = {}
        if plain:
            shortened = [(given[i][0], cast(list[int], read[i][0]), given[i][2]) for i in plain]
            answers = super()._loglikelihood_tokens(
                cast(Any, shortened), disable_tqdm=disable_tqdm, override_bs=override_bs
            )
            found.update(zip(plain, answers, strict=True))
        size = int(self.batch_size)
        # the longest first, as in the harness, so that the time left is never underestimated
        with_memory.sort(key=lambda i: -span_of(self.memory_model.config, read[i]))
        for first in tqdm(range(0, len(with_memory), size), desc="Scoring", disable=disable_tqdm or not with_memory):
            rows = with_memory[first : first + size]
            scores = self._score([read[i] for i in rows], [given[i][2] for i in rows])
            found.update(zip(rows, scores, strict=True))
        return [found[i] for i in range(len(given))]

    @torch.inference_mode()
    def _score(self, rows: Sequence[list[Piece]], continuations: Sequence[list[int]]) -> list[tuple[float, bool]]:
        longer = [
            [*pieces[:-1], [*cast(list[int], pieces[-1]), *continuation[:-1]]]
            for pieces, continuation in zip(rows, continuations, strict=True)
        ]
        prompt = self.memory_model.prompt(longer)
        inputs = self.memory_model.prepare_inputs_for_generation(**prompt, use_cache=False)
        longest = max(map(len, continuations))
        logits = self.memory_model(**inputs, logits_to_keep=longest).logits.float().log_softmax(-1)
        found: list[tuple[float, bool]] = []
        for row, continuation in zip(logits, continuations, strict=True):
            ids = torch.tensor(continuation, device=row.device)
            own = row[-len(ids) :]
            nats = float(own.gather(-1, ids[:, None]).sum())
            found.append((nats, bool((own.argmax(-1) == ids).all())))
        return found

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of texts, each chunk given all text before it; with "full", that of `HFLM`."""
        if self.reading == "full":
            return super().loglikelihood_rolling(requests, disable_tqdm)
        parts: list[Request] = []
        owners: list[int] = []
        for owner, request in enumerate(requests):
            ids = [self.prefix_token_id, *self.tok_encode(request.args[0])]
            for start in range(1, len(ids), self.chunk_length):
                parts.append((None, ids[:start], ids[start : start + self.chunk_length]))
                owners.append(owner)
        found = [0.0] * len(requests)
        for owner, (nats, _) in zip(owners, self._loglikelihood_tokens(parts, disable_tqdm), strict=True):
            found[owner] += nats
        return found

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Generate a continuation of each context, up to the first of its stop strings."""
        given = [cast(tuple[str, dict[str, Any]], request.args) for request in requests]
        limits = [cast(Any, normalize_gen_kwargs(o, self.max_gen_toks))["max_gen_toks"] for _, o in given]
        read = [self.pieces(self.tok_encode(text), after=n) for (text, _), n in zip(given, limits, strict=True)]
        if self.reading == "full":
            return super().generate_until(requests, disable_tqdm)
        rows = tqdm(zip(read, given, strict=True), total=len(read), desc="Generating", disable=disable_tqdm)
        return [self._generate(pieces, options) for pieces, (_, options) in rows]

    @torch.inference_mode()
    def _generate(self, pieces: list[Piece], given: dict[str, Any]) -> str:
        options = cast(dict[str, Any], normalize_gen_kwargs(given, self.max_gen_toks))
        eos = self.tok_decode(self.eot_token_id, skip_special_tokens=False)
        stops = handle_stop_sequences(options.pop("until", None), eos=eos)
        limit, prompt = options.pop("max_gen_toks"), self.memory_model.prompt([pieces])
        options.setdefault("do_sample", False)
        found = cast(Any, self.memory_model).generate(
            **prompt,
            **{name: value for name, value in options.items() if name != "temperature" or options["do_sample"]},
            max_new_tokens=limit,
            stop_strings=stops,
            tokenizer=self.tokenizer,
            pad_token_id=self.tokenizer.pad_token_id,
            eos_token_id=self.eot_token_id,
        )
        written = self.tok_decode(found[0, prompt["input_ids"].shape[1] :].tolist())
        return postprocess_generated_text(generation=written, stop=stops, think_end_token=None)
