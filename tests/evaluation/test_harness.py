"""lm-evaluation-harness: our class equals the harness's own without memories, and reads them where there are any."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from memlm.cli import main
from memlm.data import load_tokenizer
from memlm.errors import DataError, UserError
from memlm.models import MemoryModelForCausalLM
from memlm.models.memory.adapter import plain_decoder
from tests.conftest import speech
from tests.models.test_memory import memory_model
from tests.variants import LLAMA_DECODER

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from memlm.data import Document
from memlm.evaluation.lm_eval.compare import compare_readings, largest_difference, open_tasks
from memlm.evaluation.lm_eval.language_model import MemoryLM
from memlm.evaluation.lm_eval.tasks import TASKS, write_tasks

pytestmark = pytest.mark.filterwarnings("ignore")  # the harness's own


def prose(seed: int) -> str:
    """Sentences of ten words."""
    words = speech(seed, 400).split()
    return " ".join(" ".join(words[i : i + 10]).rstrip(".") + "." for i in range(0, 400, 10))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("harness")
    write_tasks(folder, [Document("a", prose(1)), Document("b", prose(2))], questions=4, words=60)
    return folder


@pytest.fixture(scope="module")
def saved(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A memory model with adapters that have moved, and positions for long texts."""
    words = len(tokenizer)
    decoder = {**LLAMA_DECODER, "vocab_size": words + 1, "max_position_embeddings": 1024, "eos_token_id": 1}
    sizes: dict[str, Any] = {"memory_token_id": words, "lora": {"rank": 2, "alpha": 4.0}, "layout": "variable"}
    found = memory_model(decoder=decoder, encoder={"vocab_size": words}, first_token_id=5, **sizes)
    for name, parameter in found.decoder.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter)
    folder = tmp_path_factory.mktemp("saved") / "model"
    found.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(saved: Path) -> MemoryLM:
    found = MemoryModelForCausalLM.from_pretrained(saved)
    return MemoryLM(found, load_tokenizer(saved), memory_after=8, batch_size=3)


def scored(context: str, continuation: str) -> Instance:
    return Instance("loglikelihood", {}, (context, continuation), 0)


def written(context: str, **options: Any) -> Instance:
    return Instance("generate_until", {}, (context, {"until": ["."], "max_gen_toks": 5, **options}), 0)


def test_tasks_ask_for_what_stands_far_above(folder: Path) -> None:
    rows = {name: [json.loads(line) for line in (folder / f"{name}.jsonl").open()] for name in TASKS}
    for row in rows["memlm_recall"]:
        text, _, question = row["context"].rpartition("\n\n")
        assert f"{question.removeprefix('The')} {row['answer']}." in text.replace(" The secret", "  secret")
        assert row["choices"][row["label"]] == f" {row['answer']}"
        assert text.index("secret word") < len(text) / 2
    for row in rows["memlm_cloze"]:
        text, _, question = row["context"].rpartition("\n\nOnce more: ")
        assert f"{question} {row['answer']}." in text
        assert text.index(question) < len(text) / 2
    assert len({row["context"] for row in rows["memlm_prose"]}) == 4
    with pytest.raises(DataError, match="need documents of 900 words"):
        write_tasks(folder, [Document("a", prose(1))], questions=1, words=900)


def test_all_tokens_is_what_the_harness_finds_by_its_own_class(model: MemoryLM, folder: Path) -> None:
    from memlm.evaluation.lm_eval.compare import _scores

    manager = open_tasks(list(TASKS), folder)
    found = compare_readings(model, list(TASKS), manager, readings=["full"])
    plain = HFLM(pretrained=plain_decoder(model.memory_model.decoder), tokenizer=model.tokenizer, batch_size=3)
    own = {name: _scores(plain, name, manager, None) for name in TASKS}
    assert largest_difference(found, own) == 0


def test_what_is_read_as_memories_is_what_the_model_says_of_them(model: MemoryLM) -> None:
    reader, length = model.memory_model, model.chunk_length
    context, continuation = prose(3)[:150], " people"
    ids, more = model._encode_pair(context, continuation)
    old = (len(ids) - 8) // length
    assert old > 1
    model.reset()
    model.reading = "memory"
    (nats, greedy), (nats_again, _) = model.loglikelihood([scored(context, continuation)] * 2, disable_tqdm=True)
    memories = reader.encode(torch.tensor([ids[: old * length]]))[0]
    prompt = reader.prompt([[memories, [*ids[old * length :], *more[:-1]]]])
    logits = reader(**reader.prepare_inputs_for_generation(**prompt, use_cache=False)).logits[0, -len(more) :]
    expected = logits.log_softmax(-1).gather(-1, torch.tensor(more)[:, None]).sum()
    torch.testing.assert_close(torch.tensor(nats), expected, rtol=1e-5, atol=1e-5)
    assert nats == nats_again
    assert greedy == bool((logits.argmax(-1) == torch.tensor(more)).all())
    assert (model.num_requests, model.num_memories) == (2, 2 * old)


def test_without_is_the_plain_decoder_on_the_newest_tokens(model: MemoryLM) -> None:
    context, continuation = prose(4)[:150], " trade"
    ids, more = model._encode_pair(context, continuation)
    kept = ids[(len(ids) - 8) // model.chunk_length * model.chunk_length :]
    model.reading = "without"
    found = model.loglikelihood([scored(context, continuation)], disable_tqdm=True)[0][0]
    logits = model.model(torch.tensor([[*kept, *more[:-1]]])).logits[0, -len(more) :].log_softmax(-1)
    expected = logits.gather(-1, torch.tensor(more)[:, None]).sum()
    torch.testing.assert_close(torch.tensor(found), expected, rtol=1e-5, atol=1e-5)


def test_rolling_says_every_token_once(model: MemoryLM) -> None:
    text = prose(5)[:120]
    model.reading = "memory"
    model.reset()
    (found,) = model.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0)], disable_tqdm=True)
    ids = [model.prefix_token_id, *model.tok_encode(text)]
    one_by_one = [
        model._loglikelihood_tokens([(None, ids[:i], [ids[i]])], disable_tqdm=True)[0][0] for i in range(1, len(ids))
    ]
    # a chunk's later tokens see what the chunk's first one saw as tokens, not as memories
    assert found == pytest.approx(sum(one_by_one), rel=0.05)
    assert model.num_memories > 0


@pytest.mark.parametrize("reading", ["memory", "without", "full"])
def test_it_writes(model: MemoryLM, reading: Any) -> None:
    model.reading = reading
    answers = model.generate_until([written(prose(6)[:150]), written("the people")], disable_tqdm=True)
    assert all(isinstance(answer, str) and "." not in answer for answer in answers)


def test_side_by_side_on_the_command_line(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "prose.jsonl"
    text.write_text("".join(json.dumps({"text": prose(i)}) + "\n" for i in range(3)))
    asked = ["eval-harness", "--model", str(saved), "--text", str(text), "--memory-after", "8", "--questions", "3"]
    assert main([*asked, "--out", str(tmp_path / "out"), "--hf", str(tmp_path / "none")]) == 2
    capsys.readouterr()
    assert main([*asked, "--out", str(tmp_path / "out")]) == 0
    table = capsys.readouterr().out
    assert "| with memory | without | all tokens | requests that read memories | memories read |" in table
    assert all(name in table for name in ("memlm_recall", "memlm_cloze", "memlm_prose"))
    assert (tmp_path / "out" / "table.md").read_text() == table
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert all(row["memories"] > 0 for row in results)


BAD: dict[str, tuple[list[str], str]] = {
    "an unknown task": (["--tasks", "memlm_recal"], "memlm_recall"),
    "no task": (["--tasks", ","], "--tasks names none"),
    "no reading": (["--readings"], "--readings"),
    "an unknown reading": (["--readings", "half"], "half"),
    "no questions": (["--questions", "0"], "--questions (0)"),
    "no batch": (["--batch-size", "0"], "--batch-size (0)"),
    "a window of nothing": (["--memory-after", "0"], "--memory-after (0)"),
    "a window beyond the decoder": (["--memory-after", "99999"], "memory_after (99999)"),
    "memories of another size": (["--tokens-per-memory", "4"], "memories of"),
    "memories of less than a token": (["--tokens-per-memory", "0.5"], "--tokens-per-memory (0.5)"),
    "no such run": (["--model", "nowhere"], "nowhere"),
    "no such text": (["--text", "nowhere.txt"], "nowhere.txt"),
    "no run to take text from": ([], "run.json"),
    "a plain model beside no reading of all tokens": (["--hf", "x", "--readings", "memory"], "add full"),
}


@pytest.mark.parametrize("name", BAD)
def test_mistakes_are_one_line(name: str, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more, said = BAD[name]
    asked = ["eval-harness", "--model", str(saved), "--memory-after", "8", "--out", str(tmp_path / "out")]
    assert main([*asked, *more]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("memlm: error:") == 1
    assert "Traceback" not in error


def test_a_task_shorter_than_the_window_has_no_score_with_memory(model: MemoryLM, folder: Path) -> None:
    manager = open_tasks(["memlm_recall"], folder)
    wide = MemoryLM(model.memory_model, model.tokenizer, memory_after=model.positions - 1)
    with pytest.raises(UserError, match=r"no request of these tasks read a memory: the longest context has \d+ tokens"):
        compare_readings(wide, ["memlm_recall"], manager, readings=["memory"], limit=2)


def test_a_context_longer_than_the_decoder_is_said(model: MemoryLM) -> None:
    model.reading = "full"
    with pytest.raises(UserError, match=r"takes \d+ decoder positions \(read as 'full'\) and there are"):
        model.split(list(range(5)) * model.positions, after=0)
