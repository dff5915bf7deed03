"""A run from its settings to its folder: text, model, training, all resumable.

The kinds of runs differ in `_train_autoencoder` and `train_stages`; what lies around them is the same.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from transformers import PreTrainedModel

from memlm.data import PackedRows, eos_id, load_tokenizer, pad_id
from memlm.errors import ConfigError, DataError, RunFolderError
from memlm.models import TextAutoencoder, TextAutoencoderConfig
from memlm.models.runtime import no_shard_bars
from memlm.objectives import Task, reconstruction
from memlm.training.config import RunConfig
from memlm.training.kinds import AnyRunConfig
from memlm.training.loop import distributed
from memlm.training.loop.callbacks import Interrupt, ProgressView, RunCallback, RunLog
from memlm.training.loop.fit import fit
from memlm.training.loop.trainer import Interrupted, MemlmTrainer, reconstruction_batches
from memlm.training.loop.validation import held_out_score
from memlm.training.memory.config import MemoryRunConfig
from memlm.training.memory.stages import train_stages
from memlm.training.prepare import PreparedData, prepare_data
from memlm.training.run_folder import RunFolder, command_line, describe_versions
from memlm.training.table import take_table

_LOOK_ROWS = 256


def build_model(config: RunConfig, *, vocab_size: int, pad_token_id: int, eos_token_id: int) -> TextAutoencoder:
    """The autoencoder of a run, its weights drawn from the run's seed."""
    settings = config.model.model_dump(exclude={"table"})
    torch.manual_seed(config.training.seed)
    return TextAutoencoder(
        TextAutoencoderConfig(vocab_size=vocab_size, pad_token_id=pad_token_id, eos_token_id=eos_token_id, **settings)
    )


def train_run(
    config: AnyRunConfig,
    out: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> RunFolder:
    """Train what a configuration describes, into a run folder; nothing is lost on Ctrl-C or worse.

    Args:
        config: the checked settings; with `resume` the folder's own settings are used instead.
        out: the run folder.
        resume: go on from the newest checkpoint (or from the start where there is none yet).
        overwrite: replace an older run in the folder.
        progress: show progress on stderr.

    Raises:
        RunFolderError: the folder is taken, in use or cannot be written.
        DataError, TokenizerError, ConfigError: what the run is made of does not fit.
        Interrupted: Ctrl-C.
    """
    with distributed.joined():
        if resume:
            folder = RunFolder.open(out)
            config = folder.config()
            if folder.finished():
                return folder
            data = _prepared(config)
        else:
            distributed.first_does(lambda: RunFolder.require_room(out, overwrite=overwrite))
            # the folder is touched only when the new run's text and tokenizer are known to be good
            data = _prepared(config)
            distributed.first_does(lambda: RunFolder.create(out, config, overwrite=overwrite))
            folder = RunFolder(Path(out))
        distributed.require_same("settings", config.model_dump_json())
        distributed.require_same("text", json.dumps(data.record))
        with _first_locks(folder), no_shard_bars():
            _check_changed_text(folder, data)
            there = folder.path / "data.json"
            distributed.first_does(lambda: None if there.is_file() else _write_records(folder, data))
            train = train_stages if isinstance(config, MemoryRunConfig) else _train_autoencoder
            try:
                model = train(config, folder, data, progress=progress)  # type: ignore[arg-type]
            except RuntimeError as error:
                if not distributed.is_loss_of_another(error):
                    raise
                raise Interrupted(f"another process has ended; {_again(folder)}") from error
            distributed.first_does(lambda: _finish(folder, model))
    return folder


def _again(folder: RunFolder) -> str:
    return f"go on with: memlm train --resume --out {folder.path}"


@contextmanager
def _first_locks(folder: RunFolder) -> Generator[None]:
    """The first process keeps others' trainings out of the folder."""
    with ExitStack() as stack:
        distributed.first_does(lambda: stack.enter_context(folder.locked()))
        yield


def _prepared(config: AnyRunConfig) -> PreparedData:
    seed = config.training.seed
    if isinstance(config, RunConfig):
        tokenizer = None if config.model.table is None else load_tokenizer(config.model.table)
        return prepare_data(config.data, chunk_length=config.model.chunk_length, seed=seed, tokenizer=tokenizer)
    length = config.model.document_length
    decoder = config.model.decoder
    if decoder.pretrained is None and decoder.adapter != "all":
        raise ConfigError(
            f"decoder.adapter ('{decoder.adapter}') is for a pretrained decoder; give one (--decoder PATH_OR_HUB_ID)."
        )
    if decoder.pretrained is not None and config.encoder_run is None:
        raise ConfigError("a pretrained decoder reads the memories of a trained encoder; give its run (--encoder RUN).")
    # a pretrained decoder's tokens are its own; else those of the encoder's run, or new ones
    place = decoder.pretrained or config.encoder_run
    if config.encoder_run is not None:
        RunFolder.open(config.encoder_run).require_model()
    tokenizer = None if place is None else load_tokenizer(place)
    data = prepare_data(config.data, chunk_length=length, seed=seed, tokenizer=tokenizer)
    if config.encoder_run is None:
        return data
    _check_text_the_encoder_saw(config, data)
    return data


def _check_text_the_encoder_saw(config: MemoryRunConfig, data: PreparedData) -> None:
    """What is held out here must be held out there, or the encoder has learnt the answers."""
    before = RunFolder.open(str(config.encoder_run)).data()
    same_text = before["source"] == data.record["source"]
    if same_text and before["fingerprint_held_out"] != data.record["fingerprint_held_out"]:
        there, here = str(before["fingerprint_held_out"])[:8], str(data.record["fingerprint_held_out"])[:8]
        raise DataError(
            f"'{config.encoder_run}' may have trained on text that is held out here (held-out {there} there, "
            f"{here} here); give the same data.held_out, data.max_documents and training.seed as its run."
        )


def _train_autoencoder(config: RunConfig, folder: RunFolder, data: PreparedData, *, progress: bool) -> TextAutoencoder:
    tokenizer = data.tokenizer
    model = build_model(
        config,
        vocab_size=len(tokenizer),
        pad_token_id=pad_id(tokenizer),
        eos_token_id=eos_id(tokenizer),
    )
    if config.model.table is not None:
        take_table(model, config.model.table)
    settings = config.training
    sample = data.held_out_rows.sample(settings.evaluate_rows, seed=0)

    def make_callback(trainer: MemlmTrainer, log: RunLog, view: ProgressView, interrupt: Interrupt) -> RunCallback:
        return RunCallback(settings, log, view, _evaluator(trainer, sample), interrupt)

    fit(
        model,
        reconstruction_batches(data.train_rows),
        settings,
        folder.path,
        rows=len(data.train_rows),
        tokens_per_row=config.model.chunk_length,
        make_callback=make_callback,
        progress=progress,
        again=_again(folder),
        keep_checkpoints=True,
    )
    return model


def _evaluator(trainer: MemlmTrainer, rows: PackedRows) -> Callable[[], dict[str, float]]:
    """A look at held-out rows."""

    def look() -> dict[str, float]:
        accuracy, nats = held_out_score(trainer, rows, _reconstructed, at_once=_LOOK_ROWS)
        return {"held_out_token_accuracy": accuracy, "held_out_cross_entropy": nats}

    return look


def _reconstructed(batch: PackedRows) -> Task:
    return reconstruction(batch.input_ids, batch.attention_mask)


def _check_changed_text(folder: RunFolder, data: PreparedData) -> None:
    """A resumed run goes on with the text it began with, or held-out text might be trained on."""
    if not (folder.path / "data.json").is_file():
        return
    before = folder.data()
    for half in ("fingerprint_train", "fingerprint_held_out"):
        if before[half] != data.record[half]:
            raise DataError(
                f"'{data.record['source']}' has changed since this run began ({half} {str(before[half])[:8]}, now "
                f"{str(data.record[half])[:8]}); restore the text or begin a new run with another --out."
            )


def _write_records(folder: RunFolder, data: PreparedData) -> None:
    """How the run began; data.json last, so that where it is, all is."""
    data.tokenizer.save_pretrained(folder.path)
    folder.write("versions.json", describe_versions())
    folder.write(
        "data.json",
        {**data.record, "unigram_counts": data.unigram_counts.tolist(), "command": command_line()},
    )


def _finish(folder: RunFolder, model: PreTrainedModel) -> None:
    """The model to the folder's root, the weights last, so that what can be loaded is whole."""
    draft = folder.path / ".model.draft"
    try:
        model.save_pretrained(draft)
        for file in sorted(draft.iterdir(), key=lambda p: p.suffix == ".safetensors"):
            file.replace(folder.path / file.name)
        folder.write("status.json", {"state": "finished"})
    except OSError as error:
        raise RunFolderError(f"cannot write the model to '{folder.path}': {error.strerror or error}.") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
