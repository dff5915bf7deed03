"""A run from its settings to its folder: text, new model, stages, all resumable."""

from __future__ import annotations

import json
import shutil
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from memlm.checksums import SUMS, written_files
from memlm.data import eos_id, load_tokenizer, pad_id
from memlm.data.given import check_kind
from memlm.durable import add_sums, flush, flush_tree, seal_folder
from memlm.errors import CheckpointError, ConfigError, DataError, RunFolderError, is_out_of_memory
from memlm.files import read_sealed_json
from memlm.models import ChunkEncoder, MemoryModelForCausalLM, SlotWriter, SlotWriterConfig, TextAutoencoder, encoder_of
from memlm.models.loading import RUN_MODELS, load_model
from memlm.models.runtime import no_shard_bars, weights_fingerprint
from memlm.training.config import RunConfig
from memlm.training.loop import distributed
from memlm.training.loop.callbacks import say
from memlm.training.loop.trainer import Interrupted
from memlm.training.memory.distillation import build_writer, measure_heads
from memlm.training.memory.estimate import check_fits, estimate
from memlm.training.memory.pretrained import build_around_pretrained, take_token_table
from memlm.training.model_settings import ModelConfig, TokenIds, complete, settings_of
from memlm.training.prepare import PreparedData, prepare_data
from memlm.training.run_folder import RunFolder, command_line, describe_versions
from memlm.training.stages import StageRunner


def encoder_of_run(path: str) -> ChunkEncoder:
    """Return the encoder of a finished run of an autoencoder or a memory model, in evaluation mode.

    Raises:
        RunFolderError, CheckpointError: not a finished run of a model with an encoder.
    """
    RunFolder.open(path).require_model()
    return encoder_of(load_model(path, TextAutoencoder, MemoryModelForCausalLM)[0])


def build_run_model(
    config: RunConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int | None = None,
    encoder: ChunkEncoder | None = None,
) -> PreTrainedModel:
    """Return the untrained model of a run; a given encoder is frozen into it.

    Args:
        config: settings of the run; a pretrained decoder comes with its weights.
        tokenizer: tokenizer of the decoder, and of the encoder where it has none of its own.
        seed: seed of the weights; the run's by default.
        encoder: trained encoder.

    Raises:
        ConfigError: sizes that do not fit each other.
        CheckpointError: the pretrained decoder cannot be loaded.
    """
    seed = config.training.seed if seed is None else seed
    if isinstance(config.model, SlotWriterConfig):
        torch.manual_seed(seed)
        return build_writer(config, config.model, tokenizer)
    if config.decoder.path is not None:
        own = None if config.encoder_run is None else load_tokenizer(config.encoder_run)
        torch.manual_seed(seed)
        return build_around_pretrained(config, tokenizer, encoder=encoder, encoder_tokenizer=own)
    tokens = TokenIds(len(tokenizer), pad_id(tokenizer), eos_id(tokenizer))
    head = any("reconstruction" in stage.objectives for stage in config.stages) and not config.is_autoencoder
    model = build_model(config.model, tokens, seed=seed, encoder=encoder, reconstruction_head=head)
    if config.data.token_table is not None:
        take_token_table(cast(TextAutoencoder, model), config.data.token_table)
    return model


def build_model(
    config: ModelConfig,
    tokens: TokenIds,
    *,
    seed: int,
    encoder: ChunkEncoder | None = None,
    reconstruction_head: bool = False,
) -> Any:
    """Return an untrained model for a tokenizer's sizes.

    Args:
        config: configuration of the model; what the data decides is filled in anew.
        tokens: sizes and ids of the tokenizer.
        seed: seed of the weights.
        encoder: trained encoder that is frozen into a memory model.
        reconstruction_head: whether a memory model has a head for the `reconstruction` objective.
    """
    filled: dict[str, Any] = {"reconstruction_head": True} if reconstruction_head else {}
    if encoder is not None:
        filled |= {"freeze_encoder": True, "encoder_fingerprint": weights_fingerprint(encoder)}
    torch.manual_seed(seed)
    full = complete(settings_of(config), tokens, encoder=None if encoder is None else encoder.config, **filled)
    model = cast(Any, RUN_MODELS[full.model_type])(full)
    if encoder is not None:
        model.encoder.load_state_dict(encoder.state_dict())
    return model


def train_run(
    config: RunConfig, out: str | Path, *, resume: bool = False, overwrite: bool = False, progress: bool = True
) -> RunFolder:
    """Train what a configuration describes, into a run folder; Ctrl-C or a crash loses nothing.

    Args:
        config: checked settings; with `resume` the folder's own settings are used instead.
        out: the run folder.
        resume: continue from the newest checkpoint, or from the start where there is none yet.
        overwrite: replace an older run in the folder.
        progress: show progress on stderr.

    Raises:
        RunFolderError: the folder is taken, in use or cannot be written.
        DataError, TokenizerError, ConfigError: parts of the run do not fit each other.
        CheckpointError: the encoder's run has changed since this one began.
        Interrupted: Ctrl-C.
    """
    check_kind(config, RunConfig, name="config", instead="get_recipe(NAME), or make_run_config(VALUES)")
    # the first process keeps other trainings out of the folder
    with distributed.joined(), ExitStack() as stack, no_shard_bars():
        if resume:
            folder = RunFolder.open(out)
            config = folder.config()
            if folder.finished():
                return folder
            data = _prepared(config)
            distributed.first_does(lambda: stack.enter_context(folder.locked()))
        else:
            distributed.first_does(lambda: RunFolder.require_room(out, overwrite=overwrite))
            _check_decoder(config)
            if isinstance(config.model, SlotWriterConfig):
                found = estimate(config, config.model)
                say(f"{config.decoder.path}: {found}", shown=progress)
            # the folder is touched only when the new run's text and tokenizer are known to be good
            data = _prepared(config)
            _check_model(config, data)
            claim = RunFolder.claimed(out, config, overwrite=overwrite)
            distributed.first_does(lambda: stack.enter_context(claim))
            folder = RunFolder(Path(out))
        distributed.require_same("settings", config.model_dump_json())
        distributed.require_same("text", json.dumps(data.record))
        if (folder.path / "data.json").is_file():
            _check_changed_text(folder, data)
        distributed.first_does(lambda: _write_records(folder, data))
        try:
            model = _train(config, folder, data, progress=progress)
        except RuntimeError as error:
            if is_out_of_memory(error):
                advice = "lower training.batch_size or the model's sizes"
                raise ConfigError(f"memory ran out while '{out}' was trained; {advice}.") from error
            if not distributed.is_loss_of_another(error):
                raise
            again = f"go on with: memlm train --resume --out {folder.path}"
            raise Interrupted(f"another process has ended; {again}") from error
        if isinstance(model, SlotWriter) and config.training.sharding == "none":
            writer = model
            distributed.first_does(lambda: measure_heads(writer, data.train_rows, data.tokenizer, progress=progress))
        distributed.first_does(lambda: _finish(folder, model))
    return folder


def _train(config: RunConfig, folder: RunFolder, data: PreparedData, *, progress: bool) -> PreTrainedModel:
    encoder = None if config.encoder_run is None else encoder_of_run(config.encoder_run)
    model = build_run_model(config, data.tokenizer, encoder=encoder)
    if encoder is not None:
        _check_changed_encoder(folder, str(model.config.encoder_fingerprint))
        _check_long_chunks(model, data)

    def renew(seed: int) -> dict[str, torch.Tensor]:
        # without stages, so that there is no new head for reconstruction: the old one belongs to the encoder
        bare = config.model_copy(update={"stages": ()})
        own: ChunkEncoder | None = getattr(model, "encoder", None)
        weights = build_run_model(bare, data.tokenizer, seed=seed, encoder=own).state_dict()
        return {name: value for name, value in weights.items() if not name.startswith("encoder.")}

    StageRunner(model, data, config, folder, renew, progress).run()
    return model


def _prepared(config: RunConfig) -> PreparedData:
    # a pretrained decoder's tokens are its own; else those of the encoder's run, or new ones
    place = config.decoder.path or config.encoder_run or config.data.token_table
    if config.encoder_run is not None:
        RunFolder.open(config.encoder_run).require_model()
    gguf = {} if config.decoder.gguf_file is None else {"gguf_file": config.decoder.gguf_file}
    tokenizer = None if place is None else load_tokenizer(place, **gguf)
    length = config.model.document_length
    data = prepare_data(config.data, chunk_length=length, seed=config.training.seed, tokenizer=tokenizer)
    if config.encoder_run is not None:
        _check_text_the_encoder_saw(config.encoder_run, data)
    return data


def _check_decoder(config: RunConfig) -> None:
    """Check that there is a device, and that a pretrained decoder and its settings fit each other."""
    decoder = config.decoder
    if config.training.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("training.device (cuda) is not here: PyTorch sees no GPU; leave it out, or give cpu.")
    if isinstance(config.model, SlotWriterConfig):
        if decoder.path is None:
            raise ConfigError("memlm_slot_writer trains adapters of a decoder; give one (--decoder PATH_OR_HUB_ID).")
        if decoder.adapter != "lora":
            raise ConfigError(f"decoder.adapter ('{decoder.adapter}') must be 'lora' for memlm_slot_writer.")
        return
    if decoder.path is not None:
        if config.encoder_run is None:
            raise ConfigError(
                "a pretrained decoder reads the memories of a trained encoder; give its run (--encoder RUN)."
            )
        return
    if decoder.adapter != "all" or getattr(config.model, "lora", None) is not None:
        name = f"decoder.adapter ('{decoder.adapter}')" if decoder.adapter != "all" else "model.lora"
        raise ConfigError(f"{name} is for a pretrained decoder; give one (--decoder PATH_OR_HUB_ID).")


def _check_model(config: RunConfig, data: PreparedData) -> None:
    """Check that the model can be built and that it fits into memory."""
    if config.decoder.path is not None or config.data.token_table is not None:
        return  # weights of others, which are read when the model is built
    encoder = None if config.encoder_run is None else encoder_of_run(config.encoder_run)
    with torch.device("meta"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*copying from a non-meta parameter")
        model = build_run_model(config, data.tokenizer, encoder=encoder)
    check_fits(model, config.training.batch_size // distributed.count())


def _check_text_the_encoder_saw(encoder_run: str, data: PreparedData) -> None:
    """Check that held-out text was held out from the encoder's training too."""
    before = RunFolder.open(encoder_run).data()
    there, here = (str(record["fingerprint_held_out"]) for record in (before, data.record))
    if before["source"] == data.record["source"] and there != here:
        raise DataError(
            f"'{encoder_run}' may have trained on text that is held out here (held-out {there[:8]} there, "
            f"{here[:8]} here); give data.held_out, data.max_documents and training.seed as its run has them."
        )


def _check_changed_text(folder: RunFolder, data: PreparedData) -> None:
    """Check that a resumed run has the text that it began with, or held-out text might be trained on."""
    before = folder.data()
    for part in ("fingerprint_train", "fingerprint_validation", "fingerprint_held_out"):
        if before[part] != data.record[part]:
            raise DataError(
                f"'{data.record['source']}' has changed since this run began ({part} {str(before[part])[:8]}, now "
                f"{str(data.record[part])[:8]}); restore the text or begin a new run with another --out."
            )


def _check_changed_encoder(folder: RunFolder, fingerprint: str) -> None:
    """Check that a frozen encoder is the one with which the run began."""
    path = folder.path / "encoder.json"
    now = {"fingerprint": fingerprint}
    distributed.first_does(lambda: None if path.is_file() else folder.write("encoder.json", now))
    before = read_sealed_json(path)
    if before != now:
        raise CheckpointError(
            f"the encoder has changed since this run began ({str(before.get('fingerprint'))[:12]}, now "
            f"{fingerprint[:12]}); restore it or begin a new run with another --out."
        )


def _check_long_chunks(model: PreTrainedModel, data: PreparedData) -> None:
    """Check that an encoder with a tokenizer of its own has room for the text of most chunks."""
    translation = getattr(model, "translation", None)
    if translation is not None:
        chunks = data.train_rows.sample(64, seed=0).input_ids.reshape(-1, model.config.chunk_length)
        translation(chunks, torch.ones_like(chunks))
        translation.require_fitting(model.config.chunk_length)


def _write_records(folder: RunFolder, data: PreparedData) -> None:
    """Write how the run began, data.json last: where it is, all records are."""
    if (folder.path / "data.json").is_file():
        return
    written = data.tokenizer.save_pretrained(folder.path)
    seal_folder(folder.path, {Path(name).name for name in written or () if Path(name).is_file()})
    folder.write("versions.json", describe_versions())
    counts = data.unigram_counts.tolist()
    folder.write("data.json", {**data.record, "unigram_counts": counts, "command": command_line()})


def _finish(folder: RunFolder, model: PreTrainedModel) -> None:
    """Write the model to the folder's root, the weights last, so that a model that can be loaded is complete."""
    draft = folder.path / ".model.draft"
    try:
        shutil.rmtree(draft, ignore_errors=True)
        model.save_pretrained(draft)
        flush_tree(draft)
        add_sums(folder.path, written_files(folder.path) | written_files(draft))
        for file in sorted(draft.iterdir(), key=lambda p: p.suffix == ".safetensors"):
            if file.name != SUMS:
                file.replace(folder.path / file.name)
        flush(folder.path)
        folder.write("status.json", {"state": "finished"})
    except OSError as error:
        raise RunFolderError(f"cannot write the model to '{folder.path}': {error.strerror or error}.") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
