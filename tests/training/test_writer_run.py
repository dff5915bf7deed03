"""A pretrained decoder learns to write memories: trained, resumed, saved, read again."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from memlm.cli import main
from memlm.data import PackedRows, encode_texts, load_tokenizer
from memlm.errors import CheckpointError, ConfigError
from memlm.models import SlotWriter, SlotWriterConfig
from memlm.models.memory.adapter import adapters_active
from memlm.models.runtime import load_decoder
from memlm.models.slots import EncodingSettings, MemoryDecoder, SlotMemories
from memlm.recipes import get_recipe
from memlm.training import RunFolder, train_run
from memlm.training.config import RunConfig, merge_run
from memlm.training.loop.callbacks import RunCallback
from memlm.training.memory.distillation import DistillationBatches, build_writer
from memlm.training.memory.estimate import estimate
from tests.conftest import speech
from tests.models.test_slots import FAMILIES, decoder_of, ids
from tests.training.test_pretrained import decoder, llama_config  # noqa: F401 (a fixture)

STEPS = 6


@pytest.fixture(scope="module")
def config(decoder: Path, corpus: Path) -> RunConfig:  # noqa: F811
    changes: dict[str, Any] = {
        "model": {"chunk_length": 8, "num_chunks": 3, "scored_tokens": 4, "ratios": [1, 4], "lora": {"rank": 2}},
        "decoder": {"path": str(decoder)},
        "data": {"text": str(corpus)},
        "training": {"steps": STEPS, "checkpoint_every": 4, "evaluate_every": 3, "log_every": 1, "evaluate_rows": 4},
    }
    return merge_run(get_recipe("memory-pretrained"), changes)


@pytest.fixture(scope="module")
def run(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("writer") / "run"
    train_run(config, out, progress=False)
    return out


def writer_of(family: str, **more: Any) -> SlotWriter:
    settings = {"chunk_length": 8, "num_chunks": 4, "scored_tokens": 8, "lora": {"rank": 2}, "first_token_id": 1}
    return SlotWriter(SlotWriterConfig(**{**settings, **more}), decoder_of(family))


def stirred(writer: SlotWriter) -> SlotWriter:
    """Give the adapters weights that change what they write."""
    for name, weight in writer.named_parameters():
        if "lora_" in name:
            weight.data.normal_(std=0.3)
    return writer


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_change_what_is_written_and_nothing_else(family: str) -> None:
    plain, writer = decoder_of(family), stirred(writer_of(family))
    rows, mask = torch.tensor(ids(32, 32)), torch.ones(2, 32, dtype=torch.bool)
    settings = EncodingSettings(mode="chunks", chunk_length=8, block_length=8)
    with torch.no_grad():
        assert torch.equal(writer.decoder(rows).logits, plain(rows).logits)
        written = writer.reader.encode(rows, mask, settings)
        with adapters_active(writer.decoder, True):
            assert not torch.equal(writer.decoder(rows).logits, plain(rows).logits)
        assert torch.equal(writer.decoder(rows).logits, plain(rows).logits)
    untrained = writer_of(family).reader.encode(rows, mask, settings)
    assert not torch.allclose(written.layers[-1].values, untrained.layers[-1].values)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("ratio", [1, 4])
def test_divergence_is_that_of_each_prefix_by_itself(family: str, ratio: int) -> None:
    writer = stirred(writer_of(family))
    [row, short] = ids(32, 20)
    rows, mask = torch.tensor([row, short + [5] * 12]), torch.ones(2, 32, dtype=torch.long)
    mask[1, 20:] = 0
    found = writer(rows, mask, ratio=ratio)
    total, count = 0.0, 0
    for text in (row, short):
        for start in range(8, len(text), 8):
            nats = _slow_divergence(writer, text[:start], text[start : start + 8], ratio)
            total, count = total + float(nats.sum()), count + len(nats)
    assert int(found.num_targets) == count
    torch.testing.assert_close(found.nats.sum(), torch.tensor(total), rtol=1e-3, atol=1e-4)


@torch.no_grad()
def _slow_divergence(writer: SlotWriter, written: list[int], read: list[int], ratio: int) -> torch.Tensor:
    """Compare one text's continuation behind its own memories with the plain decoder's, one text at a time."""
    known = torch.tensor([written])
    settings = EncodingSettings(mode="chunks", chunk_length=8, block_length=8)
    encoded = writer.reader.encode(known, torch.ones_like(known).bool(), settings)
    kept = torch.arange(ratio - 1, len(written), ratio)
    memories = encoded.keep([kept.expand(1, states.keys.shape[2], -1) for states in encoded.layers])
    return _divergence(writer, written, read, memories)


@torch.no_grad()
def _divergence(writer: SlotWriter, written: list[int], read: list[int], memories: SlotMemories) -> torch.Tensor:
    first = writer.config.first_token_id
    model = MemoryDecoder.__new__(MemoryDecoder)
    model.decoder = writer.decoder
    behind = writer.decoder(**model.inputs([read], memories)).logits[0].log_softmax(-1)
    full = writer.decoder(torch.tensor([[first, *written, *read]])).logits[0, -len(read) :].log_softmax(-1)
    return (full.exp() * (full - behind)).sum(-1)


@pytest.mark.parametrize("family", FAMILIES)
def test_training_may_read_memories_as_they_are_fitted(family: str) -> None:
    writer = stirred(writer_of(family, num_chunks=2))
    [row] = ids(16)
    settings = EncodingSettings(mode="chunks", chunk_length=8, block_length=8)
    known = torch.tensor([row[:8]])
    with torch.no_grad():
        memories = writer.reader.encode(known, torch.ones_like(known).bool(), settings).at(tokens_per_memory=4)
    total = float(_divergence(writer, row[:8], row[8:], memories).sum())
    found = writer(torch.tensor([row]), ratio=4, fitted=True)
    torch.testing.assert_close(found.nats.sum(), torch.tensor(total), rtol=1e-3, atol=1e-4)
    every_fourth = writer(torch.tensor([row]), ratio=4)
    assert abs(float(every_fourth.nats.sum()) - total) > 1e-4 * total


def test_gradients_pass_through_the_fit() -> None:
    writer = stirred(writer_of("llama", num_chunks=2))
    rows = torch.tensor(ids(16, 16))
    weights = [weight for weight in writer.parameters() if weight.requires_grad]
    # what the last layer writes depends on no more than its keys and values
    slopes = torch.autograd.grad(writer(rows, ratio=4, fitted=True).loss, weights, materialize_grads=True)
    step = [slope / torch.stack([x.norm() for x in slopes]).norm() for slope in slopes]
    losses = []
    with torch.no_grad():
        for sign in (1, -2):
            for weight, direction in zip(weights, step, strict=True):
                weight += sign * 1e-3 * direction
            losses.append(float(writer(rows, ratio=4, fitted=True).loss))
    expected = float(sum((slope * direction).sum() for slope, direction in zip(slopes, step, strict=True)))
    assert (losses[0] - losses[1]) / 2e-3 == pytest.approx(expected, rel=0.05)


def test_a_share_of_steps_reads_fitted_memories() -> None:
    config = SlotWriterConfig(chunk_length=8, num_chunks=2, scored_tokens=4, ratios=[4], fit_share=0.3)
    rows = PackedRows(torch.tensor(ids(16)), torch.ones(1, 16, dtype=torch.long), torch.tensor([0]), ("a",))
    batches = DistillationBatches(rows, config, 1, 0)
    drawn = [bool(batches(torch.tensor([0]), place)["fitted"]) for place in range(400)]
    assert sum(drawn) / len(drawn) == pytest.approx(0.3, abs=0.07)
    with pytest.raises(ConfigError, match=r"fit_share \(0.3\) must lie between 0 and 1, and above 0 only for kv"):
        SlotWriterConfig(fit_share=0.3, injection="layer")


def test_certain_tokens_are_compared_with_the_text() -> None:
    writer = stirred(writer_of("llama", num_chunks=2))
    [row] = ids(16)
    certain = torch.zeros(1, 16, dtype=torch.bool)
    certain[0, [9, 12]] = True
    found = writer(torch.tensor([row]), ratio=4, certain=certain)
    model = MemoryDecoder.__new__(MemoryDecoder)
    model.decoder, known = writer.decoder, torch.tensor([row[:8]])
    settings = EncodingSettings(mode="chunks", chunk_length=8, block_length=8)
    with torch.no_grad():
        memories = writer.reader.encode(known, torch.ones_like(known).bool(), settings)
        memories = memories.beginnings(torch.tensor([8]), 4)
        behind = writer.decoder(**model.inputs([row[8:]], memories)).logits[0].log_softmax(-1)
    divergence = _divergence(writer, row[:8], row[8:], memories)
    divergence[[1, 4]] = -behind[[1, 4], [row[10], row[13]]]
    torch.testing.assert_close(found.nats.sum(), divergence.sum(), rtol=1e-3, atol=1e-4)


def test_padding_may_be_no_token_of_the_decoder() -> None:
    writer = stirred(writer_of("llama"))
    rows, mask = torch.tensor(ids(32)), torch.ones(1, 32, dtype=torch.long)
    mask[0, 20:] = 0
    known = writer(rows, mask)
    found = writer(rows.masked_fill(mask == 0, 300), mask)
    assert torch.equal(known.nats, found.nats)


def test_training_teaches_the_adapters_only() -> None:
    writer = writer_of("llama")
    before = copy.deepcopy({n: w for n, w in writer.state_dict().items() if "lora_" not in n})
    rows = torch.tensor(ids(32, 32, 32, 32))
    optimizer = torch.optim.AdamW([p for p in writer.parameters() if p.requires_grad], lr=1e-2)
    losses: list[float] = []
    for _ in range(30):
        loss = writer(rows).loss
        assert loss is not None
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert all(torch.equal(weight, before[n]) for n, weight in writer.state_dict().items() if n in before)


def test_validation_leaves_out_rows_behind_which_nothing_is_read(config: RunConfig, tmp_path: Path) -> None:
    for i in range(12):
        (tmp_path / f"{i}.txt").write_text(speech(i)[: 1000 if i % 2 else 5])
    changes: dict[str, Any] = {"training": {"steps": 1, "batch_size": 1, "evaluate_rows": 64}}
    alone = merge_run(config, {**changes, "data": {"text": str(tmp_path), "validation": 0.5}})
    train_run(alone, tmp_path / "run", progress=False)
    assert RunFolder(tmp_path / "run").log()[-1]["validation_divergence/1"] >= 0


def test_the_log_tells_divergence_at_each_ratio(run: Path) -> None:
    last = RunFolder(run).log()[-1]
    assert {"loss/distillation", "validation_divergence/1", "validation_agreement/4"} <= last.keys()
    assert 0 <= last["validation_token_accuracy"] <= 1


def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(
    config: RunConfig, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Bang(Exception):
        pass

    original = RunCallback.on_step_end

    def explode(self: RunCallback, args: Any, state: Any, control: Any, **extra: Any) -> None:
        if state.global_step == STEPS - 1:
            raise Bang
        original(self, args, state, control, **extra)

    with monkeypatch.context() as patch:
        patch.setattr(RunCallback, "on_step_end", explode)
        with pytest.raises(Bang):
            train_run(config, tmp_path / "run", progress=False)
    train_run(config, tmp_path / "run", resume=True, progress=False)
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()


def test_a_run_holds_the_adapters_and_no_copy_of_the_decoder(run: Path, decoder: Path) -> None:  # noqa: F811
    assert (run / "model.safetensors").stat().st_size < (decoder / "model.safetensors").stat().st_size
    model = MemoryDecoder.from_pretrained(str(run))
    assert model.settings.mode == "chunks"
    assert model.settings.chunk_length == 8
    rows = torch.tensor(encode_texts(load_tokenizer(decoder), [speech(1)[:60]]))
    assert torch.equal(model.decoder(rows).logits, AutoModelForCausalLM.from_pretrained(decoder)(rows).logits)


def test_saved_and_loaded_again_a_decoder_writes_the_same_memories(run: Path, decoder: Path, tmp_path: Path) -> None:  # noqa: F811
    for place, mode in ((run, "chunks"), (decoder, "joint")):
        model = MemoryDecoder.from_pretrained(str(place))
        model.save_pretrained(tmp_path / mode)
        again = MemoryDecoder.from_pretrained(str(tmp_path / mode))
        assert again.settings == model.settings
        assert again.settings.mode == mode
        one, other = (m.memories(speech(2)[:80], tokens_per_memory=4) for m in (model, again))
        for a, b in zip(one.layers, other.layers, strict=True):
            assert torch.equal(a.keys, b.keys)
            assert torch.equal(a.values, b.values)


def test_adapters_know_their_decoder(run: Path, decoder: Path, tmp_path: Path) -> None:  # noqa: F811
    torch.manual_seed(4)
    LlamaForCausalLM(llama_config(262)).save_pretrained(tmp_path / "other")
    with pytest.raises(CheckpointError, match="is not the one"):
        MemoryDecoder.from_pretrained(str(run), decoder=str(tmp_path / "other"))
    half = MemoryDecoder.from_pretrained(str(run), dtype="bfloat16")
    assert half.decoder.dtype == torch.bfloat16
    with pytest.raises(CheckpointError, match="exists already"):
        half.save_pretrained(run)


def test_settings_that_do_not_fit_are_named(config: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for changes, words in (
        ({"model": {"num_chunks": 1}}, "num_chunks"),
        ({"model": {"scored_tokens": 9}}, "scored_tokens"),
        ({"model": {"ratios": [0]}}, "ratios"),
        ({"stages": [{"name": "a", "objectives": {"next_token": 1.0}}]}, "next_token"),
        ({"encoder_run": "x"}, "encoder_run"),
    ):
        with pytest.raises(ConfigError, match=words):
            merge_run(config, changes)
    with pytest.raises(ConfigError, match="distillation"):
        merge_run(get_recipe("memory-tiny"), {"stages": [{"name": "a", "objectives": {"distillation": 1.0}}]})
    out = ["--out", str(tmp_path / "run")]
    for more, words in (
        ([], "--decoder"),
        (["--decoder", "x", "--adapter", "gated"], "must be 'lora'"),
        (["--training.device", "cuda"], "sees no GPU"),
    ):
        assert main(["train", "memory-pretrained", *out, *more]) == 2
        assert words in capsys.readouterr().err


def test_a_decoder_that_is_loaded_again_is_the_same(decoder: Path) -> None:  # noqa: F811
    from memlm.models.slots.saved import decoder_identity

    one, half = load_decoder(str(decoder)), load_decoder(str(decoder), dtype="bfloat16")
    assert decoder_identity(one) == decoder_identity(half)


def test_a_checkpoint_is_read_with_the_tokenizer_of_its_run(run: Path) -> None:
    [checkpoint, *_] = sorted(run.glob("stages/*/checkpoints/step-*"))
    found, whole = MemoryDecoder.from_pretrained(str(checkpoint)), MemoryDecoder.from_pretrained(str(run))
    assert found.tokenizer.get_vocab() == whole.tokenizer.get_vocab()
    assert found.memories("any text", slots=2).num_slots == 3


def test_a_run_is_evaluated_beside_an_untrained_writer(run: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["report", str(run)]) == 0
    assert main(["evaluate", str(run), "--json", "--rows", "4"]) == 0
    names = {json.loads(line)["name"] for line in capsys.readouterr().out.splitlines() if line.startswith("{")}
    assert {"context_gain/chunks/2", "context_gain/chunks, untrained/2", "context_gain/joint/2"} <= names
    assert "saved/chunks/2 over truncation" in names
    page = (run / "report.html").read_text()
    assert "keeps" in page
    assert "nats saved on" in page
    assert "Share of the full-context gain" in page


def test_what_a_training_takes_is_known_before_anything_is_loaded(
    config: RunConfig,
    decoder: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = cast(SlotWriterConfig, config.model)
    found, plain = estimate(config, own), load_decoder(str(decoder))
    writer = build_writer(config, own, load_tokenizer(decoder))
    assert found.parameters == plain.num_parameters()
    assert found.trained == sum(p.numel() for p in writer.parameters() if p.requires_grad)
    assert found.weight_bytes == 4 * found.parameters
    assert "adapters of" in str(found)
    monkeypatch.setattr("memlm.training.memory.estimate.os.sysconf", lambda _: 100)
    with pytest.raises(ConfigError, match="training needs about"):
        estimate(config, own)


def test_training_goes_on_from_adapters_on_new_text(run: Path, config: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "new.txt").write_text("\n".join(speech(40 + i) for i in range(6)))
    changes: dict[str, Any] = {"decoder": {"adapter_folder": str(run)}, "data": {"text": str(tmp_path / "new.txt")}}
    more = merge_run(config, changes)
    writer = build_writer(more, cast(SlotWriterConfig, more.model), load_tokenizer(str(config.decoder.path)))
    before = load_file(run / "model.safetensors")
    assert all(torch.equal(writer.state_dict()[name], weight) for name, weight in before.items())
    train_run(merge_run(more, {"training": {"steps": 1}}), tmp_path / "more", progress=False)
    assert (tmp_path / "more" / "model.safetensors").read_bytes() != (run / "model.safetensors").read_bytes()
    other = merge_run(more, {"model": {"lora": {"rank": 3}}})
    with pytest.raises(CheckpointError, match="set model.lora alike"):
        build_writer(other, cast(SlotWriterConfig, other.model), load_tokenizer(str(config.decoder.path)))
    nothing = merge_run(more, {"decoder": {"adapter_folder": str(tmp_path)}})
    with pytest.raises(CheckpointError, match="holds no trained writer"):
        build_writer(nothing, cast(SlotWriterConfig, nothing.model), load_tokenizer(str(config.decoder.path)))
