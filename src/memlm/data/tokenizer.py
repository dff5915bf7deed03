"""Tokenizers: training of a byte-level BPE, loading, encoding, decoding, and the bytes that each id stands for."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final, cast

import torch
from jaxtyping import Int
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from memlm.data.given import list_of_texts, one_text
from memlm.errors import TokenizerError
from memlm.switches import OWN_CODE, TRUST_REMOTE_CODE, needs_code

PAD, EOS = "<pad>", "<eos>"
SMALLEST_VOCABULARY: Final = 258
"""256 bytes, padding and end of text, so that every text can be encoded."""


def train_tokenizer(texts: Iterable[str], *, vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE, which reproduces every UTF-8 text; `<pad>` has id 0 and `<eos>` id 1.

    The vocabulary is smaller than `vocab_size` if the texts have too few pairs to merge.

    Raises:
        TokenizerError: vocab_size is below SMALLEST_VOCABULARY.
    """
    if vocab_size < SMALLEST_VOCABULARY:
        least = f"{SMALLEST_VOCABULARY}: 256 bytes, {PAD} and {EOS}"
        raise TokenizerError(f"vocab_size ({vocab_size}) must be at least {least}.")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS, clean_up_tokenization_spaces=False
    )


def load_tokenizer(path_or_id: str | Path, **options: Any) -> PreTrainedTokenizerBase:
    """Load a tokenizer from a folder or the Hub, and give it distinct padding and end-of-text tokens.

    Args:
        path_or_id: folder or Hub id.
        options: of `AutoTokenizer.from_pretrained`, such as `gguf_file`; None stands for the default. Python code that
            comes with a tokenizer is not run without `trust_remote_code`, nor asked about.

    Raises:
        TokenizerError: there is no tokenizer.
    """
    given = {name: value for name, value in options.items() if value is not None}
    given["trust_remote_code"] = given.get("trust_remote_code") or TRUST_REMOTE_CODE.is_on()
    given |= {} if "gguf_file" in given else gguf_option(path_or_id)
    try:
        tokenizer = cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(str(path_or_id), **given))
    except Exception as error:
        if needs_code(error):
            raise TokenizerError(f"the tokenizer of '{path_or_id}' {OWN_CODE}") from error
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        message = f"cannot load a tokenizer from '{path_or_id}' ({reason}); give a folder with tokenizer.json."
        raise TokenizerError(message) from error
    if tokenizer.eos_token_id is None:
        tokenizer.add_special_tokens({"eos_token": EOS})
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        # a model never learns to predict an end-of-text token that is masked as padding
        tokenizer.add_special_tokens({"pad_token": PAD})
    return tokenizer


def gguf_option(path_or_id: str | Path) -> dict[str, str]:
    """Return the option with which transformers reads a folder that holds one GGUF file and no plain model.

    Raises:
        TokenizerError: the folder holds several GGUF files.
    """
    folder = Path(path_or_id)
    if not folder.is_dir() or (folder / "config.json").exists():
        return {}
    files = sorted(file.name for file in folder.glob("*.gguf"))
    if len(files) > 1:
        raise TokenizerError(f"'{path_or_id}' holds {len(files)} GGUF files ({files[0]}, ...); name one: gguf_file.")
    return {"gguf_file": files[0]} if files else {}


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, size: int) -> None:
    """Check that a tokenizer has as many tokens as a model.

    Raises:
        TokenizerError: it has more or fewer.
    """
    if len(tokenizer) != size:
        sizes = f"the tokenizer has {len(tokenizer)} tokens and the model {size}"
        raise TokenizerError(f"{sizes}; use the tokenizer that the model was trained with.")


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id of the padding token."""
    return int(cast(int, tokenizer.pad_token_id))


def eos_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id of the end-of-text token."""
    return int(cast(int, tokenizer.eos_token_id))


def first_token_id(tokenizer: PreTrainedTokenizerBase, *, vocab_size: int) -> int:
    """Return the token that a decoder reads before a text or its memories, as an attention sink.

    It is the token that texts start with, or that separates them, or a line break: the first of these that is not
    padding and that a decoder of `vocab_size` tokens knows.
    """
    candidates = (tokenizer.bos_token_id, tokenizer.eos_token_id, *encode_texts(tokenizer, ["\n"])[0])
    padding = tokenizer.pad_token_id
    return next(i for i in candidates if isinstance(i, int) and i != padding and i < vocab_size)


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: str | Sequence[str]) -> list[list[int]]:
    """Return the token ids of each text; a bare string is one text.

    No special tokens are added, and text that looks like a special token is encoded as text.

    Raises:
        DataError: they are no texts, or one holds half of a surrogate pair.
    """
    found = list_of_texts(texts)
    if not found:
        return []
    encoded = tokenizer(
        found, add_special_tokens=False, return_attention_mask=False, verbose=False, split_special_tokens=True
    )
    return cast("list[list[int]]", encoded["input_ids"])


def encode_with_ends(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[int], list[int]]:
    """Return the token ids of a text, as `encode_texts` does, and the number of its characters up to each token's end.

    Raises:
        DataError: it is no text, or holds half of a surrogate pair.
    """
    encoded = tokenizer(
        one_text(text), add_special_tokens=False, return_offsets_mapping=True, verbose=False, split_special_tokens=True
    )
    return list(encoded["input_ids"]), [end for _, end in encoded["offset_mapping"]]


def decode_ids(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Return the text of token ids, without special tokens and with spaces unchanged."""
    text = tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return cast(str, text)


def decode_piece(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Return the text of token ids from the middle of a text; a WordPiece that begins a word keeps its space."""
    if "WordPiece" not in _backend_state(tokenizer):
        return decode_ids(tokenizer, ids)
    pieces = cast("list[str]", tokenizer.convert_ids_to_tokens(list(ids)))
    return "".join(piece[2:] if piece.startswith("##") else f" {piece}" for piece in pieces)


def token_byte_lengths(tokenizer: PreTrainedTokenizerBase) -> Int[Tensor, " vocabulary"]:
    """Return the number of UTF-8 bytes of each token, (vocabulary,); 0 for special tokens.

    Bytes are counted in the pieces of the vocabulary, because a piece may be half a character and cannot be decoded.

    Raises:
        TokenizerError: the tokenizer has no fast version.
    """
    special = set(tokenizer.all_special_ids)
    length = _piece_length(tokenizer)
    vocabulary = tokenizer.get_vocab()
    # ids may have gaps, so the highest id decides the size
    sizes = [0] * max(len(tokenizer), max(vocabulary.values(), default=-1) + 1)
    for piece, index in vocabulary.items():
        if index not in special:
            sizes[index] = length(piece)
    return torch.tensor(sizes, dtype=torch.long)


def _piece_length(tokenizer: PreTrainedTokenizerBase) -> Callable[[str], int]:
    """Return the function that counts the bytes of a piece."""
    state = _backend_state(tokenizer)
    if "ByteLevel" in state:
        return len  # every character of a byte-level piece stands for one byte
    if "WordPiece" in state:
        return lambda piece: len(piece.removeprefix("##").encode()) + (not piece.startswith("##"))
    return lambda piece: 1 if re.fullmatch(r"<0x[0-9A-F]{2}>", piece) else len(piece.replace("▁", " ").encode())


def _backend_state(tokenizer: PreTrainedTokenizerBase) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise TokenizerError(f"{type(tokenizer).__name__} has no fast version, which knows its pieces; use a fast one.")
    return " ".join(str(part) for part in (backend.pre_tokenizer, backend.decoder, backend.model))
