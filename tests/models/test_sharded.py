"""Sharded over a mesh (FSDP2): a step of every model is that of the whole one."""

from __future__ import annotations

import copy
import os
import socket
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from memlm.models import TextAutoencoder, TextAutoencoderConfig
from tests.models.test_memory import memory_model
from tests.models.test_recurrent import recurrent
from tests.variants import AUTOENCODERS, MEMORY_MODELS, TINY

BLOCKS = ("MixerBlock", "LlamaDecoderLayer", "GPT2Block", "BertLayer")
"""What is gathered at a time: a model's layers, as transformers' `_no_split_modules` name them."""
CASES = [
    "recurrent",
    *(f"autoencoder: {name}" for name in AUTOENCODERS),
    *(f"memory: {name}" for name in MEMORY_MODELS),
]


@pytest.fixture(scope="module")
def mesh() -> Iterator[DeviceMesh]:
    """Of one process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    alone = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": "0", "WORLD_SIZE": "1"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in alone.items():
            patch.setitem(os.environ, name, value)
        dist.init_process_group("gloo")
        yield init_device_mesh("cpu", (1,))
        dist.destroy_process_group()


def model_of(case: str) -> PreTrainedModel:
    kind, _, name = case.partition(": ")
    if kind == "recurrent":
        return recurrent()
    if kind == "memory":
        return memory_model(name)
    torch.manual_seed(0)
    return TextAutoencoder(TextAutoencoderConfig(**{**TINY, **AUTOENCODERS[name]}))


def stepped(model: PreTrainedModel) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of a step, and every gradient."""
    length = 16 if "memory" in model.config.model_type else TINY["chunk_length"]
    ids = torch.randint(2, 23, (2, length), generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    loss = model.train()(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss
    loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), {n: g.full_tensor() if isinstance(g, DTensor) else g for n, g in grads.items()}


# outputs that are views: nothing changes them in place
@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module")
@pytest.mark.parametrize("case", CASES)
def test_a_step_is_that_of_the_whole_model(case: str, mesh: DeviceMesh) -> None:
    whole = model_of(case)
    sharded = copy.deepcopy(whole)
    blocks = [module for module in sharded.modules() if type(module).__name__ in BLOCKS]
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    assert blocks
    assert all(isinstance(p, DTensor) for p in sharded.parameters())
    (loss, gradients), (one, known) = stepped(sharded), stepped(whole)
    torch.testing.assert_close(loss, one)
    assert gradients.keys() == known.keys()
    for name, gradient in known.items():
        torch.testing.assert_close(gradients[name], gradient, msg=lambda m, n=name: f"{n}: {m}")
    assert known
