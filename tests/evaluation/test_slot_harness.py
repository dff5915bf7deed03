"""lm-evaluation-harness with a pretrained decoder: the harness's own scores without memories, and memories read."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from memlm.cli import main
from memlm.errors import ConfigError, UserError
from memlm.models.slots import EncodingSettings, MemoryDecoder
from tests.models.test_slots import decoder_of

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")

from lm_eval.api.instance import Instance
from lm_eval.models.dummy import DummyLM
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from memlm.data import Document
from memlm.evaluation.lm_eval.compare import _scores, compare_readings, largest_difference, open_tasks
from memlm.evaluation.lm_eval.ruler import TASKS as RULER
from memlm.evaluation.lm_eval.ruler import ruler_task
from memlm.evaluation.lm_eval.slot_reader import SlotLM
from memlm.evaluation.lm_eval.tasks import TASKS, write_tasks
from tests.evaluation.test_harness import prose, scored, written

pytestmark = pytest.mark.filterwarnings("ignore")  # the harness's own
WINDOW = 8
REQUESTS = [(prose(3)[:150], " people"), (prose(4)[:60], " trade"), (prose(3)[:150], " war"), (prose(5)[:90], " of")]


def decoder_with(**more: Any) -> Any:
    decoder = decoder_of("llama", eos_token_id=1, **more)
    decoder.generation_config.eos_token_id = 1
    return decoder


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerFast) -> MemoryDecoder:
    settings = EncodingSettings(chunk_length=8, block_length=16, query_distance=4)
    with_padding = copy.deepcopy(tokenizer)
    with_padding.add_special_tokens({"pad_token": "<|beyond the decoder's table|>"})
    return MemoryDecoder(decoder_with(), with_padding, settings)


@pytest.fixture
def reader(model: MemoryDecoder) -> SlotLM:
    return SlotLM(model, tokens_per_memory=3, memory_after=WINDOW, batch_size=3)


@pytest.fixture
def plain(tokenizer: PreTrainedTokenizerFast) -> Any:
    return HFLM(pretrained=decoder_with(), tokenizer=copy.deepcopy(tokenizer), batch_size=3)


def alone(model: MemoryDecoder, old: list[int], newest: list[int], continuation: list[int]) -> float:
    """Return the log-probability of a continuation behind memories, for one request and by `EncodedTexts.at`."""
    inputs = model.inputs([[*newest, *continuation[:-1]]], model.encode([old]).at(tokens_per_memory=3))
    with torch.no_grad():
        logits = model.decoder(**inputs).logits[0, -len(continuation) :].log_softmax(-1)
    return float(logits.gather(-1, torch.tensor(continuation)[:, None]).sum())


def test_without_old_context_scores_are_those_of_the_harnesss_own_class(model: MemoryDecoder, plain: Any) -> None:
    reader = SlotLM(model, memory_after=255, batch_size=3)
    asked = [scored(*request) for request in REQUESTS]
    found, expected = (x.loglikelihood(asked, disable_tqdm=True) for x in (reader, plain))
    assert [nats for nats, _ in found] == pytest.approx([nats for nats, _ in expected], abs=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    texts = [Instance("loglikelihood_rolling", {}, (prose(i)[:100],), 0) for i in range(2)]
    found, expected = (x.loglikelihood_rolling(texts, disable_tqdm=True) for x in (reader, plain))
    assert found == pytest.approx(expected, abs=1e-4)
    write = [written(prose(6)[:90]), written(prose(7)[:40])]
    assert reader.generate_until(write, disable_tqdm=True) == plain.generate_until(write, disable_tqdm=True)
    assert reader.num_requests == 0


def test_all_tokens_is_what_the_harness_finds_by_its_own_class(reader: SlotLM, plain: Any, tmp_path: Path) -> None:
    from memlm.evaluation.lm_eval.compare import _scores

    write_tasks(tmp_path, [Document("a", prose(1)), Document("b", prose(2))], questions=2, words=30)
    manager = open_tasks(list(TASKS), tmp_path)
    found = compare_readings(reader, list(TASKS), manager, readings=["full"])
    own = {name: _scores(plain, name, manager, None) for name in TASKS}
    assert largest_difference(found, own) == 0


def test_scores_in_a_batch_are_those_of_each_request_alone(model: MemoryDecoder, reader: SlotLM) -> None:
    found = reader.loglikelihood([scored(*request) for request in REQUESTS], disable_tqdm=True)
    memories = 0
    for (context, continuation), (nats, _) in zip(REQUESTS, found, strict=True):
        ids, more = reader._encode_pair(context, continuation)
        old = ids[:-WINDOW]
        assert nats == pytest.approx(alone(model, old, ids[-WINDOW:], more), abs=1e-4)
        memories += model.encode([old]).at(tokens_per_memory=3).num_slots - 1
    assert (reader.num_requests, reader.num_memories) == (len(REQUESTS), memories)


def test_a_memory_for_each_token_is_the_full_context(model: MemoryDecoder) -> None:
    first = model.config.first_token_id
    requests: list[Any] = [(None, [first, *range(10, 10 + n)], [60, 61, 62][: 1 + n % 3]) for n in (40, 7, 9, 26)]
    reader = SlotLM(model, tokens_per_memory=1, memory_after=WINDOW, batch_size=3)
    found = reader._loglikelihood_tokens(requests, disable_tqdm=True)
    assert reader.num_requests == 3
    reader.reading = "full"
    expected = reader._loglikelihood_tokens(requests, disable_tqdm=True)
    assert [nats for nats, _ in found] == pytest.approx([nats for nats, _ in expected], abs=1e-4)


def test_without_is_the_window_alone_behind_the_first_token(model: MemoryDecoder, reader: SlotLM) -> None:
    context, continuation = REQUESTS[0]
    ids, more = reader._encode_pair(context, continuation)
    reader.reading = "without"
    [(found, _)] = reader.loglikelihood([scored(context, continuation)], disable_tqdm=True)
    with torch.no_grad():
        rows = torch.tensor([[model.config.first_token_id, *ids[-WINDOW:], *more[:-1]]])
        logits = model.decoder(rows).logits[0, -len(more) :].log_softmax(-1)
    assert found == pytest.approx(float(logits.gather(-1, torch.tensor(more)[:, None]).sum()), abs=1e-4)


def test_generation_goes_on_behind_memories_until_a_stop_string(model: MemoryDecoder, reader: SlotLM) -> None:
    contexts = [context for context, _ in REQUESTS]
    asked = [written(context, until=["@@"], max_gen_toks=8) for context in contexts]
    found = reader.generate_until(asked, disable_tqdm=True)
    assert len(set(found)) == 3  # two contexts are the same
    for context, text in zip(contexts, found, strict=True):
        ids = reader.tok_encode(context)
        memories = model.encode([ids[:-WINDOW]]).at(tokens_per_memory=3)
        assert text == model.generate([ids[-WINDOW:]], memories, max_new_tokens=8, do_sample=False)[0]
    longest = max(found, key=len)
    stop = longest[len(longest) // 2]
    cut = reader.generate_until([written(c, until=[stop], max_gen_toks=8) for c in contexts], disable_tqdm=True)
    assert cut == [text.split(stop)[0] for text in found]


def test_a_context_longer_than_the_decoder_is_said(reader: SlotLM) -> None:
    with pytest.raises(UserError, match=r"takes 302 decoder positions \(read as 'memory'\) and there are 256"):
        reader.split([7] * 300, after=1)
    with pytest.raises(UserError, match="memory_after \\(256\\) must lie between 1 and 255"):
        SlotLM(reader.memory_decoder, memory_after=256)
    with pytest.raises(UserError, match="tokens_per_memory \\(0\\) must be at least 1"):
        SlotLM(reader.memory_decoder, memory_after=8, tokens_per_memory=0)


@pytest.fixture(scope="module")
def folders(model: MemoryDecoder, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A decoder's folder, and one that `save_pretrained` wrote."""
    place = tmp_path_factory.mktemp("decoders")
    decoder_with().save_pretrained(place / "decoder")
    model.tokenizer.save_pretrained(place / "decoder")
    loaded = MemoryDecoder.from_pretrained(str(place / "decoder"), settings=model.settings)
    loaded.save_pretrained(place / "saved")
    return {"decoder": place / "decoder", "saved": place / "saved"}


@pytest.mark.parametrize("kind", ["decoder", "saved"])
def test_side_by_side_on_the_command_line(
    kind: str, folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("memlm.evaluation.lm_eval.slot_reader._OLD_TOKENS", 40)
    Path("prose.jsonl").write_text("".join(json.dumps({"text": prose(i)}) + "\n" for i in range(3)))
    asked = ["eval-harness", "--model", str(folders[kind]), "--text", "prose.jsonl", "--memory-after", "8"]
    asked += ["--questions", "2", "--tokens-per-memory", "2", "--hf", str(folders["decoder"])]
    assert main(asked) == 0
    table = capsys.readouterr().out
    assert all(name in table for name in ("memlm_recall", "memlm_cloze", "memlm_prose"))
    assert "by the harness's own class: 0.0e+00" in table
    out = Path("runs/harness") if kind == "decoder" else folders[kind] / "harness"
    assert all(row["memories"] > row["requests"] > 0 for row in json.loads((out / "results.json").read_text()))


@pytest.fixture
def words() -> PreTrainedTokenizerFast:
    """A tokenizer of words and signs, so that a context of RULER is as long as with a real one."""
    backend = Tokenizer(WordLevel({"<eos>": 0}, unk_token="<eos>"))
    backend.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")


@pytest.mark.parametrize("name", RULER)
def test_contexts_of_ruler_are_counted_by_the_models_own_tokenizer(
    name: str, words: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nltk.downloader.Downloader.download", lambda *args, **kwargs: pytest.fail("it downloads"))
    task = ruler_task(name, words, [1024])
    lengths = [len(words(row["input"])["input_ids"]) for row in list(task.test_docs())[:20]]
    assert max(lengths) <= 1024
    assert min(lengths) > 600
    # a score for each length that was asked for, and none for the others
    model = DummyLM()
    model.__dict__["tokenizer"] = words  # its own is fetched
    assert list(_scores(model, task, TaskManager(include_defaults=False), limit=2)) == ["1024"]


@pytest.mark.parametrize("lengths", [[], [200], [4096, 1023]])
def test_contexts_of_ruler_have_room_for_an_example(words: PreTrainedTokenizerFast, lengths: list[int]) -> None:
    with pytest.raises(ConfigError, match="at least 1024 tokens"):
        ruler_task("ruler_vt", words, lengths)
