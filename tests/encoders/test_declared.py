"""Encoders are read as their makers declare them: as sentence-transformers reads them, and as a slow reading does."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, BartModel, CLIPModel, T5EncoderModel

from memlm.encoders import HuggingFaceEncoder, SentenceTransformersEncoder, open_encoder
from memlm.errors import EncoderError, UserError
from tests.encoders.embedders import (
    CASES,
    DENSE,
    LONG,
    MEAN,
    NORM,
    POOL,
    POOLED,
    PROMPTS,
    TEXTS,
    WIDTH,
    embedder,
    write,
)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def slow(folder: Path, text: str, prompt: str) -> Tensor:
    """Read one text alone, by the words of the files."""
    (first, *rest) = read_json(folder / "modules.json")
    place = folder / first["path"]
    sentence, vectors = (read_json(p) for p in (place / "sentence_bert_config.json", folder / VECTORS))
    tokenizer = AutoTokenizer.from_pretrained(place)
    model = (T5EncoderModel if (read_json(place / "config.json")["model_type"] == "t5") else AutoModel).from_pretrained(
        place
    )
    text = (prompt + text).lower() if sentence["do_lower_case"] else prompt + text
    limit = sentence["max_seq_length"] or 64
    ids = tokenizer(text, truncation=True, max_length=limit)["input_ids"]
    output = model.eval()(input_ids=torch.tensor([ids]), output_hidden_states=True)
    states, vector = output.last_hidden_state[0], torch.empty(0)
    for module in rest:
        kind, at = module["type"].split(".")[-1], folder / module["path"]
        given = read_json(at / "config.json") if (at / "config.json").is_file() else {}
        weights = load_file(at / "model.safetensors") if (at / "model.safetensors").is_file() else {}
        if kind == "Pooling":
            skip = 0 if given.get("include_prompt", True) or not prompt else len(tokenizer(prompt)["input_ids"]) - 1
            vector = torch.cat([slow_pooling(mode, states, skip) for mode in modes_of(given)])
        elif kind == "Dense":
            on_tokens = given.get("module_input_name") == "token_embeddings"
            value = states if on_tokens else vector
            mapped = value @ weights["linear.weight"].T + weights.get("linear.bias", torch.tensor(0.0))
            mapped = ACTIVATIONS[given["activation_function"]](mapped)
            if given.get("use_residual"):
                mapped = mapped + value @ weights["residual.weight"].T
            states, vector = (mapped, vector) if on_tokens else (states, mapped)
        elif kind == "LayerNorm":
            spread = (vector.var(unbiased=False) + 1e-5).sqrt()
            vector = (vector - vector.mean()) / spread * weights["norm.weight"] + weights["norm.bias"]
        elif kind == "WeightedLayerPooling":
            shares = weights["layer_weights"] / weights["layer_weights"].sum()
            layers = output.hidden_states[given["layer_start"] :]
            states = sum(share * layer[0] for share, layer in zip(shares, layers, strict=True))
        elif kind == "Normalize":
            vector = vector / vector.norm()
    return vector[: vectors.get("truncate_dim")]


VECTORS = "config_sentence_transformers.json"
ACTIVATIONS = {
    "torch.nn.Tanh": torch.tanh,
    "torch.nn.modules.linear.Identity": lambda x: x,
    "torch.nn.modules.activation.GELU": torch.nn.functional.gelu,
}


def modes_of(given: dict[str, Any]) -> list[str]:
    if "pooling_mode" in given:
        return [given["pooling_mode"]] if isinstance(given["pooling_mode"], str) else given["pooling_mode"]
    names = ("cls_token", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
    plain = {"cls_token": "cls", "max_tokens": "max", "mean_tokens": "mean", "weightedmean_tokens": "weightedmean"}
    return [plain.get(name, name) for name in names if given.get(f"pooling_mode_{name}")] or ["mean"]


def slow_pooling(mode: str, states: Tensor, skip: int) -> Tensor:
    kept, places = states[skip:], torch.arange(1, len(states) + 1)[skip:, None]
    return {
        "cls": kept[0],
        "max": kept.amax(0),
        "mean": kept.mean(0),
        "mean_sqrt_len_tokens": kept.sum(0) / len(kept) ** 0.5,
        "weightedmean": (kept * places).sum(0) / places.sum(),
        "lasttoken": kept[-1],
    }[mode]


PLAIN = {"plain RoBERTa": AutoModel, "plain BERT": AutoModel, "plain MPNet": AutoModel, "plain T5": T5EncoderModel}


@pytest.mark.parametrize("case", [name for name in CASES if not name.startswith("plain") and "in a chain" not in name])
def test_a_chain_is_read_as_the_slow_reading_of_its_files(case: str, tmp_path: Path) -> None:
    folder = Path(CASES[case](tmp_path))
    prompt = "passage: " if "prompt" in read_json(folder / VECTORS).get("default_prompt_name", "") + case else ""
    found = open_encoder(str(folder)).encode([*TEXTS, LONG[:100]])
    with torch.inference_mode():
        rows = [slow(folder, text, prompt) for text in [*TEXTS, LONG[:100]]]
    assert torch.allclose(found, torch.stack(rows), atol=1e-5)


@pytest.mark.parametrize("case", PLAIN)
def test_a_plain_model_is_the_mean_of_its_states_up_to_the_last_position(case: str, tmp_path: Path) -> None:
    folder = CASES[case](tmp_path)
    model, tokenizer = PLAIN[case].from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    length = {"plain BERT": 64, "plain T5": 1000}.get(case, 40)
    for text, vector in zip([*TEXTS[:3], LONG], open_encoder(folder).encode([*TEXTS[:3], LONG]), strict=True):
        ids = tokenizer(text, truncation=True, max_length=length, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            assert torch.allclose(vector, model(input_ids=ids).last_hidden_state[0].mean(0), atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_every_case_equals_sentence_transformers(case: str, tmp_path: Path) -> None:
    """Where it is installed; of the plain cases only what it can read."""
    library = pytest.importorskip("sentence_transformers")
    if "CLIP" in case:
        pytest.skip("sentence-transformers wants an image processor, too")
    folder, texts = CASES[case](tmp_path), [TEXTS[0], "peace"] if case.startswith("plain") else [*TEXTS, LONG]
    theirs = library.SentenceTransformer(folder, device="cpu").encode(texts, convert_to_tensor=True)
    assert torch.allclose(open_encoder(folder).encode(texts), theirs, atol=1e-5)


def test_encoder_decoders_are_read_by_their_encoder(tmp_path: Path) -> None:
    folder = embedder(tmp_path, backbone="bart", declared=False)
    encoder, tokenizer = open_encoder(folder), AutoTokenizer.from_pretrained(folder)
    states = BartModel.from_pretrained(folder).eval().encoder(**tokenizer(TEXTS[0], return_tensors="pt"))
    assert torch.allclose(encoder.encode(TEXTS[:1])[0], states.last_hidden_state[0].mean(0), atol=1e-5)
    assert encoder.encode([LONG]).shape == (1, WIDTH)
    assert isinstance(encoder, HuggingFaceEncoder)
    assert encoder.untrained(0).encode(TEXTS).shape == (5, WIDTH)
    with pytest.raises(EncoderError, match="no layer 3; give one from 0"):
        open_encoder(folder, layer=3)


def test_the_text_half_of_clip_gives_its_own_vectors_or_pooled_states(tmp_path: Path) -> None:
    folder = embedder(tmp_path, backbone="clip", declared=False)
    model, tokenizer = CLIPModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    given = tokenizer(TEXTS[0], return_tensors="pt")
    encoder = open_encoder(folder)
    assert torch.allclose(encoder.encode(TEXTS[:1]), model.get_text_features(**given).pooler_output, atol=1e-5)
    states = model.text_model(**given, output_hidden_states=True)
    pooled = open_encoder(folder, pooling="mean").encode(TEXTS[:1])
    assert torch.allclose(pooled[0], states.last_hidden_state[0].mean(0), atol=1e-5)
    first = open_encoder(folder, layer=1).encode(TEXTS[:1])
    assert torch.allclose(first[0], states.hidden_states[1][0].mean(0), atol=1e-5)
    assert encoder.encode([LONG]).shape == (1, 12)
    chain = open_encoder(CASES["CLIP in a chain"](tmp_path / "chain"))
    assert torch.allclose(chain.encode(TEXTS[:1]), encoder.encode(TEXTS[:1]), atol=1e-6)


def test_prompts_are_given_by_name_or_by_text(tmp_path: Path) -> None:
    folder = embedder(tmp_path / "a", POOL, vectors=PROMPTS)
    plain = embedder(tmp_path / "b", POOL)
    asked = open_encoder(folder, prompt="query")
    bare = open_encoder(folder, prompt="")
    text = "the people"
    assert torch.allclose(asked.encode([text]), open_encoder(plain).encode([f"query: {text}"]), atol=1e-6)
    assert torch.allclose(bare.encode([text]), open_encoder(plain).encode([text]), atol=1e-6)
    assert torch.equal(
        open_encoder(plain, prompt="title: ").encode([text]), open_encoder(plain).encode([f"title: {text}"])
    )
    assert len({e.fingerprint for e in (asked, bare, open_encoder(folder), open_encoder(plain, prompt="x: "))}) == 4
    with pytest.raises(EncoderError, match=r"no prompt 'querry'\. Did you mean 'query'\?.*'querry: '"):
        open_encoder(folder, prompt="querry")
    with pytest.raises(EncoderError, match=r"no prompt 'query'\. It declares none"):
        open_encoder(plain, prompt="query")


def test_a_pooling_or_a_layer_that_is_given_replaces_what_is_declared(tmp_path: Path) -> None:
    plain = open_encoder(embedder(tmp_path / "a", declared=False), layer=1).encode(TEXTS[:1])
    chain = embedder(tmp_path / "b", POOL, ("Dense", DENSE), NORM)
    assert torch.allclose(open_encoder(chain, pooling="mean", layer=1).encode(TEXTS[:1]), plain, atol=1e-6)
    with pytest.raises(EncoderError, match="give --pooling with --layer"):
        open_encoder(chain, layer=1)
    short = open_encoder(embedder(tmp_path / "c", POOL, NORM), layer=1).encode(TEXTS[:1])
    assert torch.allclose(short, torch.nn.functional.normalize(plain, dim=1), atol=1e-6)


def test_packages_lose_empty_folders_and_even_the_list_of_modules(tmp_path: Path) -> None:
    whole = open_encoder(embedder(tmp_path, POOL, NORM)).encode(TEXTS)
    assert not (tmp_path / "2_Normalize").exists()
    (tmp_path / "modules.json").unlink()
    assert not torch.allclose(open_encoder(str(tmp_path)).encode(TEXTS), whole)
    (tmp_path / "2_Normalize").mkdir()
    assert torch.equal(open_encoder(str(tmp_path)).encode(TEXTS), whole)


def test_a_twin_without_training_has_every_module_anew(tmp_path: Path) -> None:
    encoder = open_encoder(embedder(tmp_path, POOL, ("Dense", DENSE), NORM))
    assert isinstance(encoder, HuggingFaceEncoder)
    twin = encoder.untrained(4)
    assert twin.encode(TEXTS).shape == (5, 8)
    assert twin.fingerprint == encoder.untrained(4).fingerprint != encoder.fingerprint
    assert not any(
        torch.equal(a, b) for a, b in zip(twin.modules[1].parameters(), encoder.modules[1].parameters(), strict=True)
    )


def test_fingerprints_belong_to_what_is_read_and_not_to_place_or_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prints = {open_encoder(embedder(tmp_path / name, POOL, ("Dense", DENSE))).fingerprint for name in "ab"}
    monkeypatch.setattr("memlm.encoders.huggingface._LARGE", 0)
    for is_supported in (False, True):
        monkeypatch.setattr("memlm.encoders.huggingface.wants_bf16", lambda precision, found=is_supported: found)
        prints.add(open_encoder(str(tmp_path / "a")).fingerprint)
    assert len(prints) == 1
    others = [
        embedder(tmp_path / "c", POOL, ("Dense", DENSE | {"activation_function": "torch.nn.ReLU"})),
        embedder(tmp_path / "d", POOL, ("Dense", DENSE), sentence={"max_seq_length": 8}),
        embedder(tmp_path / "e", ("Pooling", POOLED | {"pooling_mode": "max"}), ("Dense", DENSE)),
    ]
    assert len({open_encoder(other).fingerprint for other in others} | prints) == 4


def change(folder: Path, name: str, **values: Any) -> None:
    write(folder / name, read_json(folder / name) | values)


def rename_module(folder: Path, kind: str) -> None:
    listed = read_json(folder / "modules.json")
    listed[1]["type"] = kind
    write(folder / "modules.json", listed)


def bin_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def integers(folder: Path, name: str = "") -> None:
    weights = load_file(folder / "model.safetensors")
    name = name or next(n for n in weights if n.endswith("query.weight"))
    save_file(weights | {name: weights[name].mul(100).to(torch.int8)}, folder / "model.safetensors", {"format": "pt"})


def lose(folder: Path, ending: str) -> None:
    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if not name.endswith(ending)}
    assert len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", {"format": "pt"})


DENSE_FOLDER = "2_Dense"
REFUSED: dict[str, tuple[Any, tuple[str, ...]]] = {
    "a module nobody knows": (
        lambda f: rename_module(f, "sentence_transformers.models.Whitening"),
        ("module 'Whitening'", "memlm[sentence-transformers]"),
    ),
    "a module of code": (
        lambda f: rename_module(f, "mine.Pooling"),
        ("module 'mine.Pooling' with code of its own", "--trust-remote-code"),
    ),
    "a module of another package": (lambda f: rename_module(f, "os.system"), ("'os.system' with code of its own",)),
    "no module": (lambda f: write(f / "modules.json", []), ("module ''",)),
    "modules that are no list": (lambda f: write(f / "modules.json", {}), ("modules.json", "holds a dict, not a list")),
    "modules that are numbers": (lambda f: write(f / "modules.json", [3]), ("modules.json", "no objects")),
    "modules elsewhere": (
        lambda f: write(f / "modules.json", [{"type": "sentence_transformers.models.Transformer", "path": "../x"}]),
        ("outside of its folder", "../x"),
    ),
    "deep JSON": (lambda f: (f / "modules.json").write_text("[" * 100_000), ("cannot read", "modules.json")),
    "an unknown pooling": (
        lambda f: write(f / "1_Pooling/config.json", POOLED | {"pooling_mode": "median"}),
        ("pooling 'median'",),
    ),
    "an unknown key": (
        lambda f: write(f / "1_Pooling/config.json", MEAN | {"temperature": 3}),
        ("declares temperature (3)",),
    ),
    "a pooling without settings": (
        lambda f: (f / "1_Pooling/config.json").unlink(),
        ("1_Pooling/config.json", "--pooling"),
    ),
    "settings of the wrong type": (
        lambda f: change(f, "1_Pooling/config.json", pooling_mode_mean_tokens="yes"),
        ("pooling_mode_mean_tokens", "'yes'"),
    ),
    "an activation of another package": (
        lambda f: change(f, f"{DENSE_FOLDER}/config.json", activation_function="os.getcwd"),
        ("activation 'os.getcwd'",),
    ),
    "a function for an activation": (
        lambda f: change(f, f"{DENSE_FOLDER}/config.json", activation_function="torch.nn.functional.relu"),
        ("activation 'torch.nn.functional.relu'",),
    ),
    "no size": (lambda f: change(f, f"{DENSE_FOLDER}/config.json", in_features=None), ("declares no in_features",)),
    "too great a size": (
        lambda f: change(f, f"{DENSE_FOLDER}/config.json", in_features=2**40),
        ("in_features", "from 1 to"),
    ),
    "another size than the weights": (
        lambda f: change(f, f"{DENSE_FOLDER}/config.json", out_features=9),
        ("linear.bias", "(8,), not (9,)"),
    ),
    "another size than the pooled states": (
        lambda f: change(f, "config.json", model_type="roberta") or _narrow(f),
        ("cannot be read as declared", "--pooling mean"),
    ),
    "weights that are not declared": (
        lambda f: change(f, f"{DENSE_FOLDER}/config.json", bias=False),
        ("'linear.bias'", "not declared"),
    ),
    "a setting of the transformer": (
        lambda f: change(f, "sentence_bert_config.json", dance=True),
        ("declares dance (True)",),
    ),
    "an option of the tokenizer": (
        lambda f: change(f, "sentence_bert_config.json", tokenizer_args={"use_fast": False}),
        ("use_fast",),
    ),
    "an option of the configuration": (
        lambda f: change(f, "sentence_bert_config.json", config_args={"wings": 2}),
        ("wings (2)",),
    ),
    "a length below one": (
        lambda f: change(f, "sentence_bert_config.json", max_seq_length=0),
        ("max_seq_length as 0",),
    ),
    "texts as chat messages": (
        lambda f: change(f, "sentence_bert_config.json", modality_config={"message": {}}, module_output_name="x"),
        ("modality_config",),
    ),
    "another kind of model": (lambda f: change(f, VECTORS, model_type="SparseEncoder"), ("is a SparseEncoder",)),
    "a default prompt that is not there": (lambda f: change(f, VECTORS, default_prompt_name="x"), ("default prompt",)),
    "prompts that are numbers": (lambda f: change(f, VECTORS, prompts={"query": 3}), ("prompts",)),
    "weights in a .bin file": (bin_weights, ("pytorch_model.bin", "can run code", "save_pretrained")),
    "dense weights in a .bin file": (lambda f: bin_weights(f / DENSE_FOLDER), ("pytorch_model.bin", "can run code")),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), ("no model.safetensors",)),
    "missing weights": (
        lambda f: lose(f, "query.weight"),
        ("lacks the weights 'encoder.layer.0.attention.self.query.weight'", "and 1 more", "random"),
    ),
    "missing dense weights": (lambda f: lose(f / DENSE_FOLDER, "linear.bias"), ("'linear.bias'", "missing")),
    "whole numbers": (integers, ("query.weight' as I8",)),
    "whole numbers in a module": (lambda f: integers(f / DENSE_FOLDER, "linear.weight"), ("'linear.weight' as I8",)),
    "damaged weights": (lambda f: (f / "model.safetensors").write_bytes(b"12345678"), ("cannot load an encoder",)),
    "damaged weights of a module": (
        lambda f: (f / DENSE_FOLDER / "model.safetensors").write_bytes(b"\xff" * 99),
        ("cannot read", "model.safetensors"),
    ),
    "adapters": (lambda f: write(f / "adapter_config.json", {}), ("adapters of another model",)),
    "weights by another name": (
        lambda f: change(f, "config.json", transformers_weights="x.bin"),
        ("x.bin", "can run code"),
    ),
}


def _narrow(folder: Path) -> None:
    change(folder, f"{DENSE_FOLDER}/config.json", in_features=WIDTH - 1)
    weights = load_file(folder / DENSE_FOLDER / "model.safetensors")
    weights["linear.weight"] = weights["linear.weight"][:, 1:].contiguous()
    save_file(weights, folder / DENSE_FOLDER / "model.safetensors")


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_known_or_not_whole_is_refused_in_one_line(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    embedder(tmp_path, POOL, ("Dense", DENSE), NORM)
    harm, words = REFUSED[case]
    harm(tmp_path)
    with pytest.raises(UserError) as error:
        open_encoder(str(tmp_path))
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_a_pooler_without_weights_is_no_part_of_the_encoder(tmp_path: Path) -> None:
    whole = open_encoder(embedder(tmp_path, POOL)).encode(TEXTS)
    weights = load_file(tmp_path / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "pooler" not in name}
    assert len(kept) < len(weights)
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    found = open_encoder(str(tmp_path))
    assert torch.equal(found.encode(TEXTS), whole)
    assert found.fingerprint == open_encoder(str(tmp_path)).fingerprint


CODE = """
from pathlib import Path
Path({marker!r}).write_text("code of the folder has run")
from transformers import RobertaConfig, RobertaModel
class MyConfig(RobertaConfig):
    model_type = "mystuff"
class MyModel(RobertaModel):
    config_class = MyConfig
"""


def test_code_of_a_folder_runs_only_where_it_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Standard input says yes, and nobody asks it."""
    import io

    folder, marker = Path(embedder(tmp_path / "model", declared=False)), tmp_path / "marker"
    expected = open_encoder(str(folder)).encode(TEXTS)
    (folder / "mine.py").write_text(CODE.format(marker=str(marker)))
    change(
        folder,
        "config.json",
        model_type="mystuff",
        auto_map={"AutoConfig": "mine.MyConfig", "AutoModel": "mine.MyModel"},
    )
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 9))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    with pytest.raises(EncoderError, match=r"code of its own.*--trust-remote-code"):
        open_encoder(str(folder))
    assert not marker.exists()
    assert sys.stdin.read() == "y\n" * 9
    assert capsys.readouterr().out == ""
    assert torch.allclose(open_encoder(str(folder), trust_remote_code=True).encode(TEXTS), expected, atol=1e-6)
    assert marker.exists()


def test_a_hub_id_is_read_as_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the Hub's cache, without a network."""
    place = tmp_path / "hub" / "models--me--small" / "snapshots" / ("1" * 40)
    expected = open_encoder(embedder(place, POOL, ("Dense", DENSE), NORM, vectors=PROMPTS)).encode(TEXTS)
    (place.parents[1] / "refs").mkdir()
    (place.parents[1] / "refs" / "main").write_text("1" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    encoder = open_encoder("me/small")
    assert torch.equal(encoder.encode(TEXTS), expected)
    assert encoder.name == "small"
    with pytest.raises(EncoderError, match="cannot load an encoder from 'me/absent'"):
        open_encoder("me/absent")


def test_a_module_that_only_sentence_transformers_knows_is_read_by_it(tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers")
    modules = importlib.import_module("sentence_transformers.sentence_transformer.modules")
    inner = library.SentenceTransformer(embedder(tmp_path / "inner", POOL), device="cpu")[0]
    rare = modules.CNN(WIDTH, 8, kernel_sizes=[1, 3])
    model = library.SentenceTransformer(modules=[inner, rare, modules.Pooling(WIDTH, "mean")], device="cpu")
    model.save(str(tmp_path / "whole"))
    encoder = open_encoder(str(tmp_path / "whole"))
    assert isinstance(encoder, SentenceTransformersEncoder)
    assert torch.allclose(encoder.encode(TEXTS), model.encode(TEXTS, convert_to_tensor=True), atol=1e-5)
    bin_weights(tmp_path / "whole" / "1_CNN")
    with pytest.raises(EncoderError, match="can run code"):
        open_encoder(str(tmp_path / "whole"))
