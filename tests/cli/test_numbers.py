"""Every number from outside has a range, and whatever lies beyond is answered with it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from memlm.cli import main
from memlm.errors import ConfigError, Within
from memlm.models.runtime import sampling_options
from memlm.session import MemorySession
from memlm.training.config import RunConfig, make_run_config

VALUES = ("nan", "inf", "-inf", "-1", str(2**70), "1e308", "9" * 5000, "abc", "")
COMMANDS = {
    **{flag: ["generate", "x", "--model", "none"] for flag in ("--temperature", "--seed", "--max-new-tokens")},
    **{flag: ["generate", "x", "--model", "none"] for flag in ("--fidelity", "--tokens-per-memory")},
    **{flag: ["remember", "a", "--store", "s"] for flag in ("--workers", "--wait")},
    **{flag: ["ask", "q", "--text", "t", "--model", "none"] for flag in ("--max-new-tokens", "--show")},
    "--rows": ["evaluate", "run"],
    "--steps": ["train", "autoencoder-tiny"],
    "-k": ["search", "s", "q"],
}


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("flag", COMMANDS)
def test_flags_are_answered_with_their_range(
    flag: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for given in ([flag, value], [f"{flag}={value}"]) if len(flag) > len("-k") else ([flag, value],):
        assert main([*COMMANDS[flag], *given]) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert re.search(rf"{flag} \(.*\) must be a (whole )?number from -?[0-9]+ to [0-9]+\.$", line), line
        assert len(line) < 200
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1, 2**70, -(2**70)])
@pytest.mark.parametrize("name", ["training.steps", "data.max_documents", "training.seed", "training.batch_size"])
def test_settings_are_refused(name: str, value: float) -> None:
    group, setting = name.split(".")
    values = RunConfig().model_dump(mode="json")
    values[group][setting] = value
    with pytest.raises(ConfigError, match=setting):
        make_run_config(values)


def test_gradients_are_clipped_at_finite_norms() -> None:
    values = RunConfig().model_dump(mode="json")
    values["training"]["optimizer"]["gradient_clip"] = float("inf")
    with pytest.raises(ConfigError, match="gradient_clip"):
        make_run_config(values)


def test_temperature_zero_is_greedy(memory_run: Path) -> None:
    session = MemorySession(memory_run)
    session.read("people of the nation")
    greedy = session.fork().generate(max_new_tokens=8)
    assert session.fork().generate(max_new_tokens=8, do_sample=True, temperature=0) == greedy
    assert session.fork().generate(max_new_tokens=8, temperature=0.0, top_k=50, do_sample=True) == greedy
    for wrong in (float("nan"), float("inf"), -1, 2**70, "1", True):
        with pytest.raises(ConfigError, match=r"temperature \(.*\) must be a number from 0 to 100"):
            session.fork().generate(max_new_tokens=1, do_sample=True, temperature=wrong)
    assert sampling_options({"temperature": 0.5, "top_k": 3}) == {"temperature": 0.5, "top_k": 3}


def test_both_ends_belong_to_a_range() -> None:
    for value in (0, 1, 0.5, np.float32(0.5), np.int8(1)):
        Within(0, 1).check("share", value)
    for word in ("0", "1.0"):
        Within(0, 1).check_word("share", word)
    with pytest.raises(ConfigError, match="whole number from 1 to 3"):
        Within(1, 3).check_word("count", "2.5", whole=True)
    for wrong in (10**6000, -(10**6000), None, "1", True, [1], 1j, float("nan"), b"1", torch.ones(2)):
        with pytest.raises(ConfigError, match=r"^share \(.*\) must be a number from 0 to 1\.$"):
            Within(0, 1).check("share", wrong)
