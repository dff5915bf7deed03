"""A model of lm-evaluation-harness that reads old context in one of several ways.

    context  [ old tokens ............. | newest tokens ]  continuation
               memories, nothing, or
               their tokens

Requests without memories go through the harness's own `HFLM`, so that the plain decoder's scores are those of `HFLM`.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, cast

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from memlm.errors import UserError

Reading = Literal["memory", "without", "full"]
"""How old context is read: as memories, not at all, or as tokens like the rest."""
Request = tuple[tuple[str, str] | None, list[int], list[int]]
"""A request of the harness: texts, and the tokens of context and continuation."""
_Harness: Any = HFLM  # its decorator hides its type from type checkers


class Parts(NamedTuple):
    """A context as the decoder reads it.

    Attributes:
        old: tokens that are read as memories, if any.
        newest: tokens that are read as tokens; at least one.
    """

    old: list[int]
    newest: list[int]


class ContextReader(_Harness):
    """The model class of the harness around a decoder that reads memories; subclasses say of which kind.

    Attributes:
        reading: how old context is read; may be set between evaluations.
        num_requests: requests that read memories since `reset`.
        num_memories: memories that these requests read.
        longest: tokens of the longest context since `reset`.
    """

    first_tokens: tuple[int, ...] = ()
    """Tokens before memories, which also stand before the newest tokens where the old ones are left out."""
    scored_at_once: int
    """Tokens of a text that are scored behind the same context in `loglikelihood_rolling`."""
    begin: int
    """Tokens of the shortest context that has memories."""
    task_length: int
    """Tokens of a context of memlm's own tasks: old context is at least as long as the window."""

    def __init__(
        self,
        decoder: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        memory_after: int,
        reading: Reading,
        batch_size: int,
    ) -> None:
        """Wrap a decoder.

        Args:
            decoder: the decoder, which computes its own logits where it reads no memories.
            tokenizer: the tokenizer of the decoder.
            memory_after: the minimum number of newest tokens that stay tokens.
            reading: how older tokens are read.
            batch_size: requests in a batch.

        Raises:
            UserError: the decoder has fewer positions than `memory_after`.
        """
        quiet = logging.getLogger("lm_eval.models.huggingface")
        level = quiet.level
        quiet.setLevel(logging.ERROR)  # it warns of every setting that a loaded model makes void
        tokenizer = _with_known_padding(tokenizer, int(decoder.config.vocab_size))
        super().__init__(pretrained=decoder.eval(), tokenizer=tokenizer, batch_size=batch_size)
        quiet.setLevel(level)
        self.positions = int(self.max_length)
        if not 1 <= memory_after < self.positions:
            raise UserError(
                f"memory_after ({memory_after}) must lie between 1 and {self.positions - 1}: the decoder has "
                f"{self.positions} positions."
            )
        self.memory_after = memory_after
        self.reading: Reading = reading
        self.reset()

    def reset(self) -> None:
        """Set all counts to zero."""
        self.num_requests = self.num_memories = self.longest = 0

    def split(self, context: Sequence[int], *, after: int) -> Parts:
        """Return what is read of a context as memories, and what as tokens.

        Args:
            context: token ids.
            after: the number of tokens that follow the context.

        Raises:
            UserError: more positions than the decoder has; the harness would truncate the context silently.
        """
        self.longest = max(self.longest, len(context))
        parts = Parts([], list(context)) if self.reading == "full" else self._split(list(context))
        if parts.old and self.reading == "without":
            parts = Parts([], [*self.first_tokens, *parts.newest])
        taken = self._positions_of(parts) + after
        if taken > self.positions:
            raise UserError(
                f"a context of {len(context)} tokens takes {taken} decoder positions (read as '{self.reading}') and "
                f"there are {self.positions}; lower --memory-after, or leave this reading or task out."
            )
        if parts.old:
            self.num_requests += 1
            self.num_memories += self._memories_of(parts.old)
        return parts

    def _split(self, context: list[int]) -> Parts:
        """Return the tokens of a context that may be read as memories, and the others."""
        raise NotImplementedError

    def _positions_of(self, parts: Parts) -> int:
        """Return the number of the decoder's positions that a context takes."""
        raise NotImplementedError

    def _memories_of(self, old: list[int]) -> int:
        """Return the number of memories of old tokens."""
        raise NotImplementedError

    def _logits(self, rows: Sequence[Parts], count: int) -> Tensor:
        """Return the logits (rows, count, vocabulary) at the last positions of contexts with memories."""
        raise NotImplementedError

    def _generated(self, rows: Sequence[Parts], **options: Any) -> list[str]:
        """Return continuations of contexts, all of which have memories or none of which has."""
        raise NotImplementedError

    def _loglikelihood_tokens(
        self, requests: Any, disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """Return the log-probability of each continuation, and whether it is the greedy one."""
        given = cast(list[Request], list(requests))
        read = [self.split(context, after=len(continuation) - 1) for _, context, continuation in given]
        plain = [i for i, parts in enumerate(read) if not parts.old]
        behind = [i for i, parts in enumerate(read) if parts.old]
        found: dict[int, tuple[float, bool]] = {}
        if plain:
            shortened = [(given[i][0], read[i].newest, given[i][2]) for i in plain]
            answers = super()._loglikelihood_tokens(
                cast(Any, shortened), disable_tqdm=disable_tqdm, override_bs=override_bs
            )
            found.update(zip(plain, answers, strict=True))
        # the longest first, as in the harness, so that the time left is never underestimated; equal contexts together
        behind.sort(key=lambda i: (-len(given[i][1]), given[i][1]))
        for rows in tqdm(list(self._batches(behind)), desc="Scoring", disable=disable_tqdm or not behind):
            scores = self._score([read[i] for i in rows], [given[i][2] for i in rows])
            found.update(zip(rows, scores, strict=True))
        return [found[i] for i in range(len(given))]

    def _batches(self, rows: list[int]) -> Iterator[list[int]]:
        size = int(self.batch_size)
        return (rows[first : first + size] for first in range(0, len(rows), size))

    @torch.inference_mode()
    def _score(self, rows: Sequence[Parts], continuations: Sequence[list[int]]) -> list[tuple[float, bool]]:
        longer = [
            Parts(parts.old, [*parts.newest, *continuation[:-1]])
            for parts, continuation in zip(rows, continuations, strict=True)
        ]
        logits = self._logits(longer, max(map(len, continuations))).float().log_softmax(-1)
        found: list[tuple[float, bool]] = []
        for row, continuation in zip(logits, continuations, strict=True):
            ids = torch.tensor(continuation, device=row.device)
            own = row[-len(ids) :]
            nats = float(own.gather(-1, ids[:, None]).sum())
            found.append((nats, bool((own.argmax(-1) == ids).all())))
        return found

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of texts, each part given all text before it; with "full", that of `HFLM`."""
        if self.reading == "full":
            return super().loglikelihood_rolling(requests, disable_tqdm)
        parts: list[Request] = []
        owners: list[int] = []
        for owner, request in enumerate(requests):
            ids = [self.prefix_token_id, *self.tok_encode(request.args[0])]
            for start in range(1, len(ids), self.scored_at_once):
                parts.append((None, ids[:start], ids[start : start + self.scored_at_once]))
                owners.append(owner)
        found = [0.0] * len(requests)
        for owner, (nats, _) in zip(owners, self._loglikelihood_tokens(parts, disable_tqdm), strict=True):
            found[owner] += nats
        return found

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Generate a continuation of each context, up to the first of its stop strings."""
        given = [cast(tuple[str, dict[str, Any]], request.args) for request in requests]
        options = [cast(dict[str, Any], normalize_gen_kwargs(o, self.max_gen_toks)) for _, o in given]
        read = [
            self.split(self.tok_encode(text), after=more["max_gen_toks"])
            for (text, _), more in zip(given, options, strict=True)
        ]
        if self.reading == "full":
            return super().generate_until(requests, disable_tqdm)
        alike: dict[tuple[bool, str], list[int]] = {}
        for i, (parts, more) in enumerate(zip(read, options, strict=True)):
            alike.setdefault((bool(parts.old), repr(more)), []).append(i)
        batches = [rows for group in alike.values() for rows in self._batches(group)]
        found: dict[int, str] = {}
        for rows in tqdm(batches, desc="Generating", disable=disable_tqdm):
            found.update(zip(rows, self._write([read[i] for i in rows], options[rows[0]]), strict=True))
        return [found[i] for i in range(len(given))]

    @torch.inference_mode()
    def _write(self, rows: Sequence[Parts], given: dict[str, Any]) -> list[str]:
        options = dict(given)
        eos = self.tok_decode(self.eot_token_id, skip_special_tokens=False)
        stops = handle_stop_sequences(options.pop("until", None), eos=eos)
        options["max_new_tokens"] = options.pop("max_gen_toks")
        if not options.setdefault("do_sample", False):
            options.pop("temperature", None)
        written = self._generated(
            rows,
            **options,
            stop_strings=stops,
            tokenizer=self.tokenizer,
            pad_token_id=self.tokenizer.pad_token_id,
            eos_token_id=self.eot_token_id,
        )
        return [postprocess_generated_text(generation=text, stop=stops, think_end_token=None) for text in written]


def _with_known_padding(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> PreTrainedTokenizerBase:
    """Return a tokenizer whose padding the decoder can read: the harness embeds padding before it masks it."""
    padding = tokenizer.pad_token_id
    if not isinstance(padding, int) or padding < vocab_size:
        return tokenizer
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
