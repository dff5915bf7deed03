"""Memory models measured: what memory saves is counted against no memory and another's, document by document."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from memlm.cli import main
from memlm.data import PackedRows, load_tokenizer
from memlm.evaluation import evaluate_run, probe_autoencoder
from memlm.evaluation.memory.perplexity import oracle_measurements, perplexity_measurements, read_rows
from memlm.evaluation.memory.recall import copy_greedily, copy_measurements, recall_measurements
from memlm.models import MemoryModelForCausalLM
from memlm.models.memory.naive import naive_logits
from memlm.objectives import copy, next_token, token_nats
from memlm.training import train_run
from memlm.training.config import RunConfig, merge_run
from memlm.training.model_settings import TokenIds
from memlm.training.run import build_model


@pytest.fixture(scope="module")
def model(memory_run: Path) -> MemoryModelForCausalLM:
    return MemoryModelForCausalLM.from_pretrained(memory_run).eval()


@pytest.fixture
def rows() -> PackedRows:
    """Six rows of three documents, the last of each short."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(2, 300, (6, 16), generator=generator)
    mask = torch.ones_like(ids)
    for row, text in ((1, 11), (3, 5), (5, 16)):
        mask[row, text:] = 0
        ids[row, text:] = 0
    return PackedRows(ids, mask, torch.tensor([0, 0, 1, 1, 2, 2]), ("a", "b", "c"))


def test_nats_by_chunk_are_those_of_the_slow_twin(model: MemoryModelForCausalLM, rows: PackedRows) -> None:
    scores = read_rows(model, rows, lambda batch, _: next_token(batch.input_ids, batch.attention_mask))
    with torch.no_grad():
        logits = naive_logits(model, rows.input_ids, rows.attention_mask)
    lost = token_nats(logits, next_token(rows.input_ids, rows.attention_mask).labels)
    for i, tally in enumerate(scores.nats):
        for document in range(3):
            expected = float(lost[rows.document_index == document, 4 * i : 4 * i + 4].sum())
            assert tally.sums[document] == pytest.approx(expected, abs=1e-4)


def test_the_first_chunk_has_nothing_to_remember(model: MemoryModelForCausalLM, rows: PackedRows) -> None:
    found = {m.name: m for m in perplexity_measurements(model, rows, torch.ones(300, dtype=torch.long), split="s")}
    for way in ("no_memory", "other_memory"):
        assert found[f"bits_per_byte/{way}/chunk_1"].value == pytest.approx(found["bits_per_byte/chunk_1"].value)
        assert found[f"bits_per_byte/{way}/chunk_2"].value != found["bits_per_byte/chunk_2"].value
    later = [m for name, m in found.items() if name.startswith("bits_saved_over")]
    assert len(later) == 2
    # the tokens of one row end before its second chunk has a target
    assert {m.interval_note for m in later} == {"no interval: 5 pieces of 3 documents, fewer than 10"}
    assert all(m.low is None for m in later)
    # counted in bytes: tokens of two bytes halve the figure
    twice = {m.name: m for m in perplexity_measurements(model, rows, torch.full((300,), 2), split="s")}
    assert twice["bits_per_byte"].value == pytest.approx(found["bits_per_byte"].value / 2)
    assert found["bits_per_byte"].value == pytest.approx(
        found["cross_entropy/next_token"].value / math.log(2), rel=1e-5
    )


def test_the_greedy_copy_reads_its_own_words(model: MemoryModelForCausalLM, rows: PackedRows) -> None:
    full = rows.select(rows.attention_mask.bool().all(1).nonzero()[:, 0])
    task = copy(full.input_ids)
    written, wanted = copy_greedily(model, full, task)
    assert torch.equal(wanted, full.input_ids[:, :8])
    for row in range(len(full)):  # one document and one token at a time
        ids = full.input_ids[row : row + 1, :8]
        for place in range(8):
            with torch.no_grad():
                new = model(ids).logits[:, -1, :300].argmax(-1, keepdim=True)
            assert int(new) == int(written[row, place])
            ids = torch.cat([ids, new], dim=1)


def test_a_model_that_knows_the_answer_scores_one(
    model: MemoryModelForCausalLM, rows: PackedRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scorer, not the model, is under test: logits that are right give 1, and wrong by one token less."""

    class Knowing(MemoryModelForCausalLM):
        def __init__(self, wrong: int) -> None:
            super().__init__(model.config)
            self.wrong = wrong

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **_: object) -> object:
            half, length = 8, input_ids.shape[1]
            answer = torch.cat([input_ids[:, :half], input_ids[:, :half]], 1)
            answer[: self.wrong, half] = 1
            if bool(input_ids[:, half:].any()):  # a copy, or one being written, asks for what follows
                answer = torch.nn.functional.pad(answer, (0, 1))[:, 1 : length + 1]
            logits = nn.functional.one_hot(answer, 300).float() * 50
            return type("Output", (), {"logits": logits})()

    full = rows.select(rows.attention_mask.bool().all(1).nonzero()[:, 0])
    for wrong, token_accuracy, exact in ((0, 1.0, 1.0), (1, 1 - 1 / (8 * len(full)), 1 - 1 / len(full))):
        found, _ = copy_measurements(Knowing(wrong), full, blank_id=0, split="s")
        named = {(m.name, m.protocol): m.value for m in found}
        assert named["token_accuracy/blank_copy", "greedy"] == pytest.approx(token_accuracy)
        assert named["exact_match/blank_copy", "greedy"] == pytest.approx(exact)


def test_recall_counts_the_facts_alone(
    model: MemoryModelForCausalLM, rows: PackedRows, tokenizer: PreTrainedTokenizerFast
) -> None:
    """A reader that gives back every other token of the first half is right about the facts that lie there."""

    class EveryOther(MemoryModelForCausalLM):
        def __init__(self, parity: int) -> None:
            super().__init__(model.config)
            self.parity = parity

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **_: object) -> object:
            back = input_ids.clone()
            start = int((input_ids[0] != 0).sum())
            asked = min(start, 16 - start)
            back[:, start : start + asked] = input_ids[:, :asked].masked_fill(torch.arange(asked) % 2 != self.parity, 1)
            return type("Output", (), {"logits": nn.functional.one_hot(back, 300).float()})()

    full = rows.select(rows.attention_mask.bool().all(1).nonzero()[:, 0])
    values, keys = (
        {m.name: m for m in recall_measurements(EveryOther(parity), full, tokenizer, blank_id=0, split="s")}
        for parity in (1, 0)
    )
    # values stand at odd places, keys are not asked for
    assert values["recall/pairs/2_chunks"].value == 1.0
    assert keys["recall/pairs/2_chunks"].value == 0.0
    assert values["recall/sentence/2_chunks"].value == keys["recall/sentence/2_chunks"].value == 0.5
    assert values["recall/number/2_chunks"].value == 0.5
    assert values["recall_whole/sentence/2_chunks"].value == 0.0
    assert values["recall/pairs/2_chunks"].count == 2 * len(full)
    for distance in (1, 3):
        assert values[f"recall/pairs/{distance}_chunks"].value == 1.0
        assert keys[f"recall/pairs/{distance}_chunks"].value == 0.0


def test_evaluate_measures_reading_copying_and_what_memories_keep(
    memory_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluation = evaluate_run(str(memory_run))
    names = {m.name for m in evaluation.measurements}
    assert {"bits_per_byte/chunk_4", "bits_saved_over/other_memory", "memories/token_accuracy"} <= names
    assert {"recall/pairs/3_chunks", "recall_whole/number/2_chunks"} <= names
    assert {"memories/untrained/token_accuracy", "token_accuracy/copy", "exact_match/blank_copy"} <= names
    assert evaluation.passages
    again = {m.name: m.value for m in evaluate_run(str(memory_run)).measurements}
    assert again == {m.name: m.value for m in evaluation.measurements}
    text = tmp_path / "other.txt"
    text.write_text("we have met in council to speak of peace. " * 40)
    assert main(["evaluate", str(memory_run), "--text", str(text)]) == 0
    assert "other.txt" in capsys.readouterr().out
    assert main(["report", str(memory_run)]) == 0
    assert "memories hidden" in (memory_run / "report.html").read_text()
    assert len(load_tokenizer(memory_run)) <= 300


def test_an_autoencoder_is_probed_as_within_the_memory_model_that_reads_it(
    finished_run: Path, memory_config: RunConfig, tmp_path: Path
) -> None:
    changes = {
        "encoder_run": str(finished_run),
        "model": {"chunk_length": 8},
        "stages": [{"name": "s", "objectives": {"next_token": 1.0}, "steps": 1}],
    }
    around = train_run(merge_run(memory_config, changes), tmp_path / "around", progress=False)
    alone = {m.name: m.value for m in probe_autoencoder(str(finished_run))}
    within = {m.name: m.value for m in evaluate_run(str(around.path)).measurements if m.name.startswith("memories/")}
    assert alone == within
    assert alone["memories/token_accuracy"] != alone["memories/untrained/token_accuracy"]


def test_an_oracles_memory_is_paid_for_by_the_bit(memory_config: RunConfig, rows: PackedRows) -> None:
    settings = merge_run(memory_config, {"model": {"layout": "oracle"}}).model
    oracle = build_model(settings, TokenIds(vocab_size=300), seed=0)
    assert isinstance(oracle, MemoryModelForCausalLM)
    found = {m.name: m for m in oracle_measurements(oracle, rows, split="s")}
    # 6 rows of 4, 3, 4, 2, 4, 4 chunks with text, 8 numbers each; one token less than text is asked for in each row
    tokens, chunks = 16 * 4 + 11 + 5 - 6, 4 + 3 + 4 + 2 + 4 + 4
    for kind, bits in (("fp16", 16), ("int8", 8), ("int4", 4)):
        offset = found[f"normalised_cross_entropy/{kind}"].value - found[f"cross_entropy/{kind}"].value
        assert offset == pytest.approx(chunks * 8 * bits * math.log(2) / tokens)
    plain = {m.name: m for m in perplexity_measurements(oracle, rows, torch.ones(300).long(), split="s")}
    assert found["cross_entropy/fp16"].value == pytest.approx(plain["cross_entropy/next_token"].value, rel=1e-3)
    assert found["cross_entropy/int4"].value != found["cross_entropy/int8"].value
