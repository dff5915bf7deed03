"""A pretrained decoder with an encoder of another tokenizer: trained, saved, read again, evaluated, remembered with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from memlm.checksums import ignoring_checksums
from memlm.cli import main
from memlm.data import encode_texts, load_tokenizer, train_tokenizer
from memlm.errors import ConfigError
from memlm.evaluation import evaluate_run
from memlm.models import MemoryModelForCausalLM, TextAutoencoder
from memlm.models.memory.adapter import plain_decoder
from memlm.models.memory.encoder import Translation
from memlm.recipes import get_recipe
from memlm.session import MemorySession
from memlm.store import TextStore
from memlm.training import RunFolder
from memlm.training.config import merge_run
from tests.conftest import speech


def llama_config(vocab_size: int) -> LlamaConfig:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaConfig(vocab_size=vocab_size, num_key_value_heads=1, tie_word_embeddings=True, **sizes)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with a tokenizer whose padding is the end of text, as many have it."""
    folder = tmp_path_factory.mktemp("decoder") / "llama"
    tokenizer = train_tokenizer([speech(i) for i in range(4)], vocab_size=262)
    tokenizer.pad_token = tokenizer.eos_token
    torch.manual_seed(3)
    LlamaForCausalLM(llama_config(len(tokenizer))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def unpadded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama whose tokenizer has no padding token: the one that memlm adds lies beyond the decoder's table."""
    folder = tmp_path_factory.mktemp("unpadded") / "llama"
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(special_tokens=["<eos>"], initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator([], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")
    assert tokenizer.pad_token_id is None
    LlamaForCausalLM(llama_config(len(tokenizer))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def flags(decoder: Path, encoder: Path, out: Path, *more: str) -> list[str]:
    small = ["--model.chunk_length", "4", "--model.slots_per_chunk", "1", "--training.evaluate_rows", "4"]
    given = ["--decoder", str(decoder), "--encoder", str(encoder), "--out", str(out), "--steps", "6"]
    return ["train", "memory-pretrained-input", *given, *small, *more]


@pytest.fixture(scope="module")
def run(decoder: Path, memory_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pretrained") / "run"
    assert main(flags(decoder, memory_run, out)) == 0
    return out


def test_text_without_memories_is_read_as_before(run: Path, decoder: Path) -> None:
    model = MemoryModelForCausalLM.from_pretrained(run).eval()
    original = AutoModelForCausalLM.from_pretrained(decoder).eval()
    ids = torch.randint(2, 250, (2, 4))
    assert torch.equal(model(ids).logits, original(ids).logits)
    assert torch.equal(plain_decoder(model.decoder)(ids).logits, original(ids).logits)
    moved = [n for n, p in model.decoder.named_parameters() if "lora_B" in n and bool(p.any())]
    assert moved
    assert model.translation is not None
    assert [stage.name for stage in RunFolder(run).config().stages] == ["warm_up", "blank_copy", "mixture"]


def test_chunks_reach_the_encoder_through_their_text(run: Path, memory_run: Path, decoder: Path) -> None:
    model = MemoryModelForCausalLM.from_pretrained(run).eval()
    reader, writer = load_tokenizer(decoder), load_tokenizer(memory_run)
    ids = torch.tensor(encode_texts(reader, [speech(9)])[0][:8])[None]
    memories = model.encode(ids)
    texts = [reader.decode(chunk) for chunk in ids.view(2, 4)]
    for own, text in zip(memories[0], texts, strict=True):
        tokens = encode_texts(writer, [text])[0][:4]
        padded = torch.zeros(1, 4, dtype=torch.long)
        mask = torch.zeros_like(padded)
        tokens = [*tokens, writer.eos_token_id][:4]
        padded[0, : len(tokens)], mask[0, : len(tokens)] = torch.tensor(tokens), 1
        torch.testing.assert_close(own[None], model.encoder(padded, mask))


def test_what_does_not_fit_the_encoder_is_counted(memory_run: Path, decoder: Path) -> None:
    translation = Translation(load_tokenizer(decoder), load_tokenizer(memory_run), length=4)
    ids = torch.tensor(encode_texts(load_tokenizer(decoder), [speech(1)])[0][:64])[None]
    translation(ids, torch.ones_like(ids))
    assert translation.cut == translation.tokens - 4
    with pytest.raises(Exception, match="64 decoder tokens do not fit the encoder's 4"):
        translation.require_fitting(64)


def test_it_is_evaluated_and_read_with(run: Path) -> None:
    found = {m.name: m.value for m in evaluate_run(str(run), probe=False, rows=40).measurements}
    assert found.keys() >= {"bits_per_byte", "token_accuracy/blank_copy"}
    # what reads no memory has forgotten nothing
    assert found["bits_per_byte/original_decoder"] == found["bits_per_byte/no_memory"]
    session = MemorySession(run, fidelity=0.0)
    session.read(speech(5))
    assert session.stats().memories > 5
    assert isinstance(session.generate(max_new_tokens=5), str)


def test_a_store_is_written_and_read_with_it(run: Path, tmp_path: Path) -> None:
    with TextStore.open(tmp_path / "s", run, write=True) as store:
        list(store.add([("a", [speech(5)]), ("b", ["\u4e2d\u6587 \x00"])]))
    with TextStore.open(tmp_path / "s", run) as store:
        assert (store.recall("a"), store.recall("b")) == (speech(5), "\u4e2d\u6587 \x00")


def test_a_decoder_without_a_padding_token(unpadded: Path, memory_run: Path, tmp_path: Path) -> None:
    run, store, file = tmp_path / "run", str(tmp_path / "s"), tmp_path / "a.txt"
    assert main(flags(unpadded, memory_run, run)) == 0
    model = MemoryModelForCausalLM.from_pretrained(run)
    assert model.config.pad_token_id >= model.get_input_embeddings().num_embeddings
    file.write_text(text := "x" * 9)  # one token in the last chunk of four: end of text follows, and padding
    assert main(["remember", str(file), "--store", store, "--model", str(run)]) == 0
    with TextStore.open(store, run) as texts:
        assert texts.recall(str(file)) == text
    session = MemorySession(run)
    session.read(speech(5))
    assert isinstance(session.generate(max_new_tokens=6), str)
    assert evaluate_run(str(run), probe=False, rows=8).measurements


@pytest.mark.parametrize("adapter", ["connector", "gated", "all"])
def test_what_learns(adapter: str, decoder: Path, memory_run: Path, tmp_path: Path) -> None:
    assert main(flags(decoder, memory_run, tmp_path / "run", "--adapter", adapter)) == 0
    model = MemoryModelForCausalLM.from_pretrained(tmp_path / "run")
    before = AutoModelForCausalLM.from_pretrained(decoder).state_dict()
    after = plain_decoder(model.decoder).state_dict()
    changed = [n for n, w in after.items() if not torch.equal(w, before[n])]
    assert any(n.endswith(".gate") for n in model.state_dict()) == (adapter == "gated")
    assert bool(changed) == (adapter == "all")
    found = {m.name: m.value for m in evaluate_run(str(tmp_path / "run"), probe=False, rows=40).measurements}
    assert (found["bits_per_byte/original_decoder"] == found["bits_per_byte/no_memory"]) == (adapter != "all")
    assert {n.split(".")[0] for n, p in model.named_parameters() if p.requires_grad} >= {"readout", "blank"}


def test_a_run_is_evaluated_where_its_decoder_is_gone(run: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(run, tmp_path / "run")
    settings = json.loads((moved / "run.json").read_text())
    settings["decoder"]["path"] = str(tmp_path / "gone")
    (moved / "run.json").write_text(json.dumps(settings))
    with ignoring_checksums():
        names = {m.name for m in evaluate_run(str(moved), probe=False, rows=40).measurements}
    assert "bits_per_byte" in names
    assert "bits_per_byte/original_decoder" not in names


BAD: dict[str, tuple[list[str], str]] = {
    "no such decoder": (["--decoder", "nowhere/at/all"], "nowhere/at/all"),
    "an unknown adapter": (["--adapter", "prefix"], "adapter"),
    "another layout": (["--model.layout", "aligned"], "'variable'"),
    "places on tokens": (["--model.learned_positions", "true"], "learned_positions"),
    "a head for blanks": (["--model.blank_head", "true"], "blank_head"),
    "chunks that the encoder has no room for": (
        ["--model.chunk_length", "16"],
        "chunks of 16 decoder tokens do not fit the encoder's 4",
    ),
    "a rank of nothing": (["--model.lora.rank", "0"], "lora's rank (0)"),
    "an objective beside text": (["--objective", "reconstruction"], "reconstruction"),
}


@pytest.mark.parametrize("name", BAD)
def test_mistakes_are_one_line(
    name: str, decoder: Path, memory_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more, said = BAD[name]
    assert main(flags(decoder, memory_run, tmp_path / "run", *more)) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("memlm: error:") == 1
    assert "Traceback" not in error


def test_a_pretrained_decoder_has_no_recurrent_memory() -> None:
    recurrent = {"model": {"model_type": "memlm_recurrent_memory"}, "decoder": {"path": "anywhere"}}
    stages = [{"name": "s", "objectives": {"next_token": 1.0}}]
    with pytest.raises(ConfigError, match=r"a pretrained decoder \(decoder.path\) has no place in recurrent memory"):
        merge_run(get_recipe("memory-pretrained-input"), {**recurrent, "stages": stages})


def test_a_decoder_and_an_encoder_are_asked_for(
    decoder: Path, memory_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "run")]
    assert main(["train", "memory-pretrained-input", "--encoder", str(memory_run), *out]) == 2
    assert "--decoder" in capsys.readouterr().err
    assert main(["train", "memory-pretrained-input", "--decoder", str(decoder), *out]) == 2
    assert "--encoder RUN" in capsys.readouterr().err


def test_an_autoencoder_takes_the_decoders_table_and_the_decoder_reads_it(
    decoder: Path, corpus: Path, tmp_path: Path
) -> None:
    small = ["--text", str(corpus), "--steps", "3", "--data.held_out", "0.2", "--training.evaluate_rows", "4"]
    sizes = ["--model.hidden_size", "8", "--model.num_heads", "2", "--model.chunk_length", "4"]
    table = ["--data.token_table", str(decoder), "--model.bottleneck_size", "16", "--model.num_encoder_layers", "0"]
    assert main(["train", "autoencoder-tiny", *small, *sizes, *table, "--out", str(tmp_path / "ae")]) == 0
    own = TextAutoencoder.from_pretrained(tmp_path / "ae").embed_tokens.weight.detach().double()
    known = AutoModelForCausalLM.from_pretrained(decoder).get_input_embeddings().weight.detach().double()
    known = known - known.mean(0)
    # the eight directions in which the decoder's tokens differ most, and nothing else, at one scale
    values = torch.linalg.svdvals(known)[:8]
    ratios = torch.linalg.svdvals(own[: len(known)]) / values
    torch.testing.assert_close(ratios, ratios.mean().expand(8), rtol=1e-4, atol=0)
    assert not bool(own[len(known) :].any())
    out = tmp_path / "run"
    assert main(flags(decoder, tmp_path / "ae", out, "--text", str(corpus), "--data.held_out", "0.2")) == 0
    assert MemoryModelForCausalLM.from_pretrained(out).config.encoder_tokens == "shared"


def test_code_that_a_checkpoint_brings_is_not_run(
    memory_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "foreign"
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps({"model_type": "foreign", "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}})
    )
    (folder / "code.py").write_text("raise SystemExit('was run')")
    load_tokenizer(memory_run).save_pretrained(folder)
    assert main(flags(folder, memory_run, tmp_path / "run")) == 2
    assert "brings code of its own, which memlm does not run" in capsys.readouterr().err


def test_a_table_that_does_not_fit_is_said(
    decoder: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["train", "autoencoder-tiny", "--text", str(corpus), "--out"]
    assert main([*asked, str(tmp_path / "ae"), "--data.token_table", str(decoder)]) == 2
    assert "model.hidden_size (192) must not exceed the width (16)" in capsys.readouterr().err
    assert (
        main([*asked, str(tmp_path / "b"), "--data.token_table", str(decoder), "--data.tokenizer", str(decoder)]) == 2
    )
    assert "has no place beside data.token_table" in capsys.readouterr().err
    assert main([*asked, str(tmp_path / "other"), "--data.token_table", "nowhere/at/all"]) == 2
    assert "nowhere/at/all" in capsys.readouterr().err
