"""Small folders of sentence embedders, as sentence-transformers and transformers write them, with random weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    BartConfig,
    BartModel,
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    MPNetConfig,
    MPNetModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5EncoderModel,
    T5Model,
)

from tests.conftest import speech

TEXTS = [
    "The Mill by the River stood still.",
    "ÉCOLE Straße ŁÓDŹ 日本語 👍🏽",
    "peace and war " * 6,
    "",
    "a </s> b <pad> c",
]
LONG = "word river mill " * 60
WIDTH = 16
_SIZES: dict[str, Any] = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2}
_SIZES |= {"intermediate_size": 32, "vocab_size": 320, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
_T5: dict[str, Any] = {"d_model": WIDTH, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "vocab_size": 320}
_T5 |= {"pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 0}
_CLIP: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
_READ = _CLIP | {"vocab_size": 320, "max_position_embeddings": 40, "eos_token_id": 2, "bos_token_id": 0}
_SEEN = _CLIP | {"image_size": 8, "patch_size": 4}

BACKBONES: dict[str, Callable[[], PreTrainedModel]] = {
    "bert": lambda: BertModel(BertConfig(**_SIZES, max_position_embeddings=64)),
    "roberta": lambda: RobertaModel(RobertaConfig(**_SIZES, max_position_embeddings=42, type_vocab_size=1)),
    "mpnet": lambda: MPNetModel(MPNetConfig(**_SIZES, max_position_embeddings=42)),
    "t5": lambda: T5EncoderModel(T5Config(**_T5)),
    "t5-whole": lambda: T5Model(T5Config(**_T5)),
    "bart": lambda: BartModel(
        BartConfig(
            d_model=WIDTH,
            encoder_layers=2,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            vocab_size=320,
            pad_token_id=1,
            bos_token_id=0,
            eos_token_id=2,
            decoder_start_token_id=2,
            max_position_embeddings=40,
        )
    ),
    "clip": lambda: CLIPModel(CLIPConfig(text_config=_READ, vision_config=_SEEN, projection_dim=12)),
}
POOLED = {"word_embedding_dimension": WIDTH}
MEAN: dict[str, Any] = POOLED | {"pooling_mode_mean_tokens": True}
DENSE: dict[str, Any] = {"in_features": WIDTH, "out_features": 8, "bias": True, "activation_function": "torch.nn.Tanh"}


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes and a few merges, with <s> before and </s> behind every text."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([speech(1)], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", mask_token="<mask>", **names)


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def embedder(
    folder: Path,
    *modules: tuple[str, dict[str, Any] | None],
    backbone: str = "roberta",
    transformer: str = "",
    kind: str = "Transformer",
    sentence: dict[str, Any] | None = None,
    vectors: dict[str, Any] | None = None,
    declared: bool = True,
) -> str:
    """Write a model, its tokenizer, and modules (kind, settings; None for no settings) with random weights."""
    torch.manual_seed(3)
    place = folder / transformer
    BACKBONES[backbone]().save_pretrained(place)
    byte_tokenizer().save_pretrained(place)
    if not declared:
        return str(folder)
    write(place / "sentence_bert_config.json", {"max_seq_length": 32, "do_lower_case": False} | (sentence or {}))
    write(
        folder / "config_sentence_transformers.json",
        {"__version__": {"sentence_transformers": "3.0.0"}} | (vectors or {}),
    )
    listed = [(kind, transformer), *((name, f"{i}_{name}") for i, (name, _) in enumerate(modules, 1))]
    write(
        folder / "modules.json",
        [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
            for i, (name, path) in enumerate(listed)
        ],
    )
    for (name, settings), (_, path) in zip(modules, listed[1:], strict=True):
        if settings is not None:
            write(folder / path / "config.json", settings)
            weights = _weights(name, settings)
            if weights:
                save_file(weights, folder / path / "model.safetensors")
    return str(folder)


def with_code(folder: Path) -> str:
    """Turn a model into one of a kind that transformers does not know, with code for it that ends the process."""
    config = json.loads((folder / "config.json").read_text())
    own = {"model_type": "mystuff", "auto_map": {"AutoConfig": "conf.MyConfig", "AutoModel": "mod.MyModel"}}
    write(folder / "config.json", config | own)
    (folder / "conf.py").write_text("raise SystemExit('the code of the folder has run')")
    return str(folder)


def _weights(name: str, settings: dict[str, Any]) -> dict[str, torch.Tensor]:
    if name == "Dense":
        shape = (settings["out_features"], settings["in_features"])
        own = {"linear.weight": torch.randn(shape) / 4}
        own |= {"linear.bias": torch.randn(shape[0])} if settings.get("bias", True) else {}
        residual = settings.get("use_residual") and shape[0] != shape[1]
        return own | ({"residual.weight": torch.randn(shape) / 4} if residual else {})
    if name == "LayerNorm":
        return {"norm.weight": torch.rand(settings["dimension"]), "norm.bias": torch.rand(settings["dimension"])}
    if name == "WeightedLayerPooling":
        return {"layer_weights": torch.tensor([1.0, 3.0])}
    return {}


POOL, NORM = ("Pooling", MEAN), ("Normalize", None)
PROMPTS = {"prompts": {"query": "query: ", "document": "passage: "}, "default_prompt_name": "document"}
CASES: dict[str, Callable[[Path], str]] = {
    "mean, normalized": lambda f: embedder(f, POOL, NORM),
    "the first token, by the new key": lambda f: embedder(f, ("Pooling", POOLED | {"pooling_mode": "cls"})),
    "two poolings, by the new key": lambda f: embedder(
        f, ("Pooling", {"embedding_dimension": WIDTH, "pooling_mode": ["max", "cls"], "include_prompt": True})
    ),
    "every pooling, by old keys": lambda f: embedder(
        f,
        (
            "Pooling",
            MEAN
            | {f"pooling_mode_{n}": True for n in ("max_tokens", "cls_token", "lasttoken", "mean_sqrt_len_tokens")}
            | {"pooling_mode_weightedmean_tokens": True},
        ),
    ),
    "no pooling by old keys": lambda f: embedder(f, ("Pooling", POOLED | {"pooling_mode_cls_token": False})),
    "padding on the left": lambda f: embedder(
        f,
        ("Pooling", POOLED | {"pooling_mode": ["lasttoken", "weightedmean", "cls"]}),
        sentence={"tokenizer_args": {"padding_side": "left"}},
    ),
    "a default prompt": lambda f: embedder(f, POOL, vectors=PROMPTS),
    "a prompt that is not pooled": lambda f: embedder(
        f,
        ("Pooling", POOLED | {"pooling_mode": ["mean", "weightedmean", "cls", "max"], "include_prompt": False}),
        vectors=PROMPTS,
    ),
    "dense": lambda f: embedder(f, POOL, ("Dense", DENSE), NORM),
    "dense without bias": lambda f: embedder(
        f, POOL, ("Dense", DENSE | {"bias": False, "activation_function": "torch.nn.modules.linear.Identity"})
    ),
    "dense with a residual": lambda f: embedder(f, POOL, ("Dense", DENSE | {"use_residual": True})),
    "two dense": lambda f: embedder(
        f,
        POOL,
        ("Dense", DENSE | {"activation_function": "torch.nn.modules.activation.GELU"}),
        ("Dense", DENSE | {"in_features": 8, "out_features": 4}),
    ),
    "dense before pooling": lambda f: embedder(
        f, ("Dense", DENSE | {"module_input_name": "token_embeddings"}), ("Pooling", MEAN), NORM
    ),
    "layer norm": lambda f: embedder(f, POOL, ("Dropout", {"dropout": 0.2}), ("LayerNorm", {"dimension": WIDTH})),
    "weighted layers": lambda f: embedder(
        f,
        ("WeightedLayerPooling", POOLED | {"layer_start": 1, "num_hidden_layers": 2}),
        POOL,
        sentence={"config_args": {"output_hidden_states": True}},
    ),
    "lower case": lambda f: embedder(f, POOL, sentence={"do_lower_case": True}),
    "eight tokens": lambda f: embedder(f, POOL, sentence={"max_seq_length": 8}),
    "no declared length": lambda f: embedder(f, POOL, backbone="bert", sentence={"max_seq_length": None}),
    "a folder for the transformer": lambda f: embedder(f, POOL, transformer="0_Transformer"),
    "short vectors": lambda f: embedder(f, POOL, NORM, vectors={"truncate_dim": 5}),
    "MPNet": lambda f: embedder(f, POOL, NORM, backbone="mpnet"),
    "T5": lambda f: embedder(f, POOL, ("Dense", DENSE), NORM, backbone="t5"),
    "T5 with its decoder": lambda f: embedder(f, POOL, backbone="t5-whole"),
    "BART in a chain": lambda f: embedder(f, POOL, backbone="bart"),
    "CLIP in a chain": lambda f: embedder(f, backbone="clip", kind="CLIPModel", sentence={"max_seq_length": None}),
    "plain RoBERTa": lambda f: embedder(f, declared=False),
    "plain BERT": lambda f: embedder(f, declared=False, backbone="bert"),
    "plain MPNet": lambda f: embedder(f, declared=False, backbone="mpnet"),
    "plain T5": lambda f: embedder(f, declared=False, backbone="t5"),
    "plain CLIP": lambda f: embedder(f, declared=False, backbone="clip"),
}
"""Folders of every kind that memlm reads, by what is particular about them."""
