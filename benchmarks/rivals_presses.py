"""Eviction methods of kvpress on rows of `benchmarks.rivals`, which runs this file in an environment of its own.

python rivals_presses.py ROWS.json

The last kvpress release pins an older transformers than memlm needs, so this file imports nothing of memlm. It prints
one JSON line for each row, method and number of entries. The first token is always kept, as memlm keeps it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import kvpress
import torch
from transformers import AutoModelForCausalLM, DynamicCache

SCORED = {
    "Knorm": kvpress.KnormPress(),
    "KeyDiff": kvpress.KeyDiffPress(),
    "StreamingLLM": kvpress.StreamingLLMPress(),
    # the default window of 64 tokens would leave no other entry at 8 tokens each
    "SnapKV": kvpress.SnapKVPress(window_size=8),
    "TOVA": kvpress.TOVAPress(),
    "ExpectedAttention": kvpress.ExpectedAttentionPress(),
    "ObservedAttention": kvpress.ObservedAttentionPress(),
}
"""Methods that score entries by themselves, so that one reading of a text serves all of them."""
Kept = dict[tuple[str, int], list[tuple[torch.Tensor, torch.Tensor]]]
"""Keys and values of each layer, by method and number of entries."""


@contextmanager
def kept_by_scores(model: Any, names: list[str], counts: list[int], found: Kept) -> Iterator[None]:
    """Add what each method keeps of the text that is read within the context."""

    def after(module: Any, _: Any, kwargs: dict[str, Any], output: Any) -> None:
        layer = kwargs["past_key_values"].layers[module.layer_idx]
        keys, values = layer.keys, layer.values
        for name in names:
            press = SCORED[name]
            for count in counts:
                press.compression_ratio = 1 - (count + 0.5) / keys.shape[2]
                scores = press.score(module, kwargs["hidden_states"], keys, values, output[1], kwargs).clone()
                scores[..., 0] = torch.inf
                kept = scores.topk(count, dim=-1).indices.sort(-1).values[..., None].expand(-1, -1, -1, keys.shape[3])
                found.setdefault((name, count), []).append((keys.gather(2, kept), values.gather(2, kept)))

    for layer in model.model.layers:
        layer.self_attn.rotary_emb = model.model.rotary_emb
    hooks = [layer.self_attn.register_forward_hook(after, with_kwargs=True) for layer in model.model.layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def contexts(models: dict[str, Any], text: list[int], job: dict[str, Any]) -> Iterator[tuple[str, int, DynamicCache]]:
    """Yield caches of a text, with the method and the number of entries."""
    ids = torch.tensor([[job["first"], *text]], device=job["device"])
    counts, found = [1 + c for c in job["counts"]], Kept()
    names = [name for name in job["presses"] if name in SCORED]
    with kept_by_scores(models["eager"], names, counts, found):
        models["eager"](ids, past_key_values=DynamicCache(), logits_to_keep=1)
    for (name, count), layers in found.items():
        cache = DynamicCache()
        for number, (keys, values) in enumerate(layers):
            cache.update(keys, values, number)
        yield name, count - 1, cache
    if "KVzip" in job["presses"]:
        for count in counts:
            yield "KVzip", count - 1, kvzip(models["sdpa"], ids, count)
            for layer in models["sdpa"].model.layers:
                layer.self_attn.masked_key_indices = None  # of this cache only


def kvzip(model: Any, ids: torch.Tensor, count: int) -> DynamicCache:
    """Return a cache of which KVzip hides all but so many entries, on average over layers and heads."""
    cache, press = DynamicCache(), kvpress.KVzipPress(compression_ratio=1 - count / ids.shape[1])
    with press(model):
        press.prefix_length = 1  # the text stands behind the first token, not in a chat template
        model(ids, past_key_values=cache, logits_to_keep=1)
    return cache


def read(model: Any, cache: DynamicCache, ids: list[int], start: int, keep: int) -> torch.Tensor:
    """Return log-probabilities behind the last `keep` tokens."""
    positions = torch.arange(start, start + len(ids), device=model.device)[None]
    out = model(
        torch.tensor([ids], device=model.device), past_key_values=cache, position_ids=positions, logits_to_keep=keep
    )
    return out.logits[0].float().log_softmax(-1).cpu()


def row_nats(model: Any, cache: DynamicCache, row: list[int], job: dict[str, Any]) -> float:
    """Return the mean loss of a row's scored tokens."""
    scored = row[-job["scored"] :]
    found = read(model, cache, row[job["context"] :], 1 + job["context"], len(scored) + 1)[:-1]
    return -float(found.gather(1, torch.tensor(scored)[:, None]).mean())


def choice_nats(model: Any, cache: DynamicCache, question: dict[str, Any], job: dict[str, Any]) -> list[float]:
    """Return the loss of each choice behind a question, all tokens together."""
    asked, start = question["asked"], 1 + job["context"]
    first = read(model, cache, asked, start, 1)
    held, found = cache.layers[0].keys.shape[2], list[float]()
    for choice in question["choices"]:
        rest = read(model, cache, choice, start + len(asked), len(choice))[:-1]
        for layer in cache.layers:
            layer.crop(held)
        found.append(-float(torch.cat([first, rest]).gather(1, torch.tensor(choice)[:, None]).sum()))
    return found


def say(**line: Any) -> None:
    """Print one JSON line."""
    print(json.dumps(line), flush=True)


@torch.no_grad()
def main(path: str) -> None:
    """Measure the rows in a file."""
    job = json.loads(Path(path).read_text())
    models = {
        name: AutoModelForCausalLM.from_pretrained(job["decoder"], attn_implementation=name, dtype=torch.float32)
        .to(job["device"])
        .eval()
        for name in ("eager", "sdpa")
    }
    for number, row in enumerate(job["rows"]):
        for name, count, cache in contexts(models, row[: job["context"]], job):
            say(kind="row", number=number, name=name, count=count, nats=row_nats(models["sdpa"], cache, row, job))
    for number, question in enumerate(job["questions"]):
        for name, count, cache in contexts(models, question["old"], job):
            nats = choice_nats(models["sdpa"], cache, question, job)
            say(kind="question", number=number, name=name, count=count, nats=nats)
    for name in job["presses"]:
        began, one = time.perf_counter(), {**job, "presses": [name], "counts": job["counts"][:1]}
        list(contexts(models, job["rows"][0][: job["context"]], one))
        say(kind="seconds", name=name, seconds=time.perf_counter() - began)


if __name__ == "__main__":
    main(sys.argv[1])
