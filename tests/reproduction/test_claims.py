"""Claims: verdicts follow the figures, rows are kept, and what speaks against the paper stays in the table."""

from __future__ import annotations

import html
from dataclasses import replace
from pathlib import Path

import pytest

from memlm.cli import main
from memlm.cli.claims import markdown, summary
from memlm.errors import RunFolderError
from memlm.measurement import Measurement
from memlm.reproduction import CLAIMS, EXPERIMENTS, ClaimSettings, Figure, Spent, measure_experiments, runs, spent_on
from memlm.reproduction.runs import Experiment, combined, config_of
from memlm.training.config import RunConfig, merge_run
from tests.training.test_pretrained import decoder  # noqa: F401 (a fixture)

GOOD = {
    ("last_token_next", "memories/token_accuracy"): 0.13,
    ("last_token_next", "memories/untrained/token_accuracy"): 0.11,
    ("last_token_mixture", "memories/token_accuracy"): 0.98,
    ("last_token_autoencoder", "memories/token_accuracy"): 0.9,
    ("autoencoder", "memories/token_accuracy"): 0.99,
    ("autoencoder", "token_accuracy"): 0.999,
    ("next_token", "memories/token_accuracy"): 0.2,
    ("next_token", "memories/untrained/token_accuracy"): 0.15,
    ("next_token", "token_accuracy/blank_copy"): 0.05,
    ("next_token", "bits_per_byte"): 2.0,
    ("next_token", "bits_saved_over/no_memory"): 0.1,
    ("next_token", "bits_saved_over/other_memory"): 0.1,
    ("mixture", "memories/token_accuracy"): 0.99,
    ("mixture", "token_accuracy/blank_copy"): 0.98,
    ("mixture", "bits_per_byte"): 2.01,
    ("curriculum", "token_accuracy/blank_copy"): 0.99,
    ("curriculum", "exact_match/blank_copy"): 0.95,
    ("curriculum_causal", "token_accuracy/blank_copy"): 0.7,
    ("curriculum_causal", "exact_match/blank_copy"): 0.0,
    ("none", "bits_per_byte"): 2.2,
    ("recurrent", "bits_per_byte"): 2.0,
    ("full_context", "bits_per_byte"): 1.9,
}


def figures(**changed: float) -> dict[tuple[str, str], Figure]:
    values = {**GOOD, **{tuple(k.split("__")): v for k, v in changed.items()}}  # type: ignore[dict-item]
    return {key: Figure(v, v - 0.005, v + 0.005, (v - 0.001, v, v + 0.001)) for key, v in values.items()}


def outcomes(**changed: float) -> list[str]:
    return [claim.judge(figures(**changed)).outcome for claim in CLAIMS]


def test_every_claim_can_hold_and_can_fail() -> None:
    good = outcomes()
    assert good == ["holds"] * 9 + ["not testable here"] * 2
    bad: list[dict[str, float]] = [
        {"last_token_next__memories/token_accuracy": 0.3},  # far above fresh weights
        {"next_token__memories/token_accuracy": 0.6},
        {"autoencoder__token_accuracy": 0.953},  # above, but not with its interval
        {"mixture__token_accuracy/blank_copy": 0.09},
        {"curriculum__token_accuracy/blank_copy": 0.9},
        {"curriculum_causal__exact_match/blank_copy": 0.6},
        {"next_token__bits_saved_over/other_memory": 0.0},
        {"recurrent__bits_per_byte": 1.9},
        {"mixture__bits_per_byte": 2.2},
    ]
    for i, changed in enumerate(bad):
        assert outcomes(**changed)[i] == "does not hold here", changed
    assert outcomes(**{"last_token_mixture__memories/token_accuracy": 0.2})[0] == "does not hold here"
    costs = [Spent(2_500_000, 90.0)] * 10 + [Spent(0, 0.0)]
    rows = [(claim, claim.judge(figures(**bad[0])), cost) for claim, cost in zip(CLAIMS, costs, strict=True)]
    table = markdown(rows)
    assert table.count("\n") == len(CLAIMS) + 2
    assert "does not hold here | 2.5 M tokens, 2 min |" in table
    assert table.endswith("not testable here | nothing |\n")
    assert summary(rows).startswith("Of 11 tests of the paper's claims 8 hold here, 1 do not, and 2 cannot be made")


def test_a_pretrained_decoder_is_judged_where_there_is_one() -> None:
    good = {
        "context_gain/chunks/8": 0.9,
        "context_gain/truncation/8": 0.6,
        "saved/chunks/8 over chunks, untrained": 0.01,
        "saved/chunks/8 over chunks, another text's": 0.3,
        "seconds/chunks over prefill": 0.7,
        "seconds/first token over prefill": 0.02,
    }

    def judged(**changed: float) -> list[str]:
        values = {("pretrained", name): value for name, value in {**good, **changed}.items()}
        found = figures() | {key: Figure(value, value - 0.005, value + 0.005) for key, value in values.items()}
        return [claim.judge(found).outcome for claim in CLAIMS[-2:]]

    assert judged() == ["holds", "holds"]
    assert judged(**{"seconds/chunks over prefill": 1.1}) == ["does not hold here", "holds"]
    assert judged(**{"seconds/first token over prefill": 0.2}) == ["does not hold here", "holds"]
    assert judged(**{"saved/chunks/8 over chunks, untrained": 0.004}) == ["holds", "does not hold here"]
    assert judged(**{"saved/chunks/8 over chunks, another text's": 0.0}) == ["holds", "does not hold here"]


def test_a_pretrained_decoder_is_taught_and_timed(
    decoder: Path,  # noqa: F811
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes = {"chunk_length": 64, "num_chunks": 2, "scored_tokens": 8}
    model = {**EXPERIMENTS["pretrained"].model, **sizes}
    monkeypatch.setattr(runs, "EXPERIMENTS", {"pretrained": replace(EXPERIMENTS["pretrained"], model=model)})
    settings = ClaimSettings(text=str(corpus), share=0.01, seeds=1, decoder=str(decoder))
    found, _ = measure_experiments(settings, tmp_path, say=print)
    assert found["pretrained", "seconds/chunks over prefill"].value > 0
    assert all(claim.judge(found).outcome != "not testable here" for claim in CLAIMS[-2:])
    assert spent_on(CLAIMS[-1].rests_on, settings, tmp_path).tokens > 0
    without = ClaimSettings(text=str(corpus), seeds=1)
    assert measure_experiments(without, tmp_path / "without", say=print) == ({}, [])
    assert spent_on(CLAIMS[-1].rests_on, without, tmp_path) == Spent(0, 0.0)


def test_intervals_join_what_seeds_and_documents_leave_open() -> None:
    def record(value: float) -> Measurement:
        return Measurement(
            name="m", value=value, unit="u", low=value - 0.196, high=value + 0.196, count=1, split="s", protocol="p"
        )

    one = combined([record(1.0)])
    assert (one.value, one.high) == (1.0, pytest.approx(1.196))
    share = record(0.95).model_copy(update={"unit": "fraction"})
    assert combined([share]).high == 1.0  # no share is more than all
    # variance between (0.02) and within (0.01), over two seeds
    two = combined([record(0.9), record(1.1)])
    assert two.high - two.value == pytest.approx(1.96 * (0.03 / 2) ** 0.5)


def test_two_trainings_are_compared_seed_by_seed() -> None:
    found = figures()
    # documents differ far more than trainings do: their own intervals overlap, the difference is sure
    found["next_token", "bits_per_byte"] = Figure(1.50, 1.40, 1.60, (1.45, 1.50, 1.55))
    found["none", "bits_per_byte"] = Figure(1.52, 1.42, 1.62, (1.471, 1.520, 1.569))
    found["recurrent", "bits_per_byte"] = Figure(1.49, 1.39, 1.59, (1.441, 1.490, 1.539))
    verdicts = [claim.judge(found) for claim in CLAIMS]
    assert verdicts[6].outcome == "holds"
    assert "saves 0.0200 [0.0175, 0.0225]" in verdicts[6].ours
    assert verdicts[7].outcome == "does not hold here"


def test_each_training_is_what_its_recipe_says(tmp_path: Path) -> None:
    settings = ClaimSettings(share=0.5, decoder="somewhere")
    configs = {name: config_of(name, 2, settings, tmp_path) for name in EXPERIMENTS}
    assert all(config.training.seed == 2 for config in configs.values())
    mixture, alone, curriculum = (configs[n] for n in ("mixture", "next_token", "curriculum"))
    assert configs["autoencoder"].is_autoencoder
    assert not any(config.is_autoencoder for config in (mixture, alone, curriculum))
    assert str(configs["pretrained"].decoder.path) == "somewhere"
    # equal next-token steps, or the price of retention would be one of fewer steps
    assert alone.steps == mixture.steps_of("next_token") == configs["none"].steps
    assert list(alone.stages[0].objectives) == ["next_token"]
    papers = [configs[f"last_token_{n}"].model for n in ("autoencoder", "next", "mixture")]
    assert [getattr(m, "encoder", m).bottleneck for m in papers] == ["last_token"] * 3
    # what two bottlenecks keep is compared, not how long each was trained
    assert configs["last_token_next"].steps == configs["last_token_mixture"].steps == alone.steps // 2  # type: ignore[union-attr]
    assert curriculum.encoder_run == str(tmp_path / "runs" / "autoencoder-seed2")


def test_runs_are_kept_one_by_one_and_other_settings_are_refused(
    memory_config: RunConfig, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "EXPERIMENTS", {"recurrent": Experiment("memory-recurrent-tiny")})
    recurrent = merge_run(memory_config, {"model": {"model_type": "memlm_recurrent_memory"}})
    monkeypatch.setattr(runs, "get_recipe", lambda _: recurrent)
    settings = ClaimSettings(text=str(corpus), seeds=2)
    said: list[str] = []
    found, records = measure_experiments(settings, tmp_path, say=said.append)
    assert [line.split("  ")[0] for line in said] == ["1 of 2: recurrent, seed 0", "2 of 2: recurrent, seed 1"]
    assert found["recurrent", "token_accuracy/copy/greedy"].value <= 1
    assert {m.name.split("/")[1] for m in records} == {"seed_0", "seed_1"}
    (tmp_path / "figures" / "recurrent-seed1.jsonl").unlink()
    monkeypatch.setattr(runs, "train_run", lambda *_, resume, **__: None if resume else pytest.fail("trained again"))
    assert measure_experiments(settings, tmp_path, say=said.append)[0] == found
    with pytest.raises(RunFolderError):
        measure_experiments(ClaimSettings(text=str(corpus), seeds=1), tmp_path, say=said.append)


BAD_FLAGS = (
    (("--share", "0"), "share (0.0)"),
    (("--seeds", "0"), "seeds (0)"),
    (("--text", ""), "text"),
    (("--workers", "0"), "--workers (0)"),
)


def test_side_by_side_trainings_are_kept_like_others_and_wait_for_their_encoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, int]] = []

    def here(jobs, work, *, needs, workers, watch):  # type: ignore[no-untyped-def]
        assert workers == 2
        assert needs(("curriculum", 1)) == ("autoencoder", 1)
        assert needs(("mixture", 1)) is None
        for job in jobs:
            asked.append(job)
            work(job)
            watch()
            yield job

    def measured(job: tuple[str, int], *, settings: ClaimSettings, out: Path, progress: bool) -> None:
        log = out / "runs" / f"{job[0]}-seed{job[1]}" / "stages" / "00-s" / "log.jsonl"
        log.parent.mkdir(parents=True)
        log.write_text('{"step": 3}\n{"step": 5}\n')
        (out / "figures").mkdir(exist_ok=True)
        (out / "figures" / f"{job[0]}-seed{job[1]}.jsonl").write_text("")
        assert runs._steps_done(log.parents[2]) == 5

    monkeypatch.setattr(runs, "run_side_by_side", here)
    monkeypatch.setattr(runs, "_train_and_measure", measured)
    said: list[str] = []
    measure_experiments(ClaimSettings(seeds=2), tmp_path, say=said.append, workers=2)
    assert len(asked) == len(said) == 2 * (len(EXPERIMENTS) - 1)
    assert said[-1].startswith("22 of 22: ")
    measure_experiments(ClaimSettings(seeds=2), tmp_path, say=said.append, workers=2)
    assert len(asked) == 2 * (len(EXPERIMENTS) - 1)


def test_bad_settings_are_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for flags, words in BAD_FLAGS:
        assert main(["claims", "--out", str(tmp_path / "c"), *flags]) == 2
        err = capsys.readouterr().err
        assert words in err
        assert len(err.splitlines()) == 1


def test_what_a_row_cost_counts_frozen_encoders_once(tmp_path: Path) -> None:
    for name, tokens in (("curriculum", 10), ("curriculum_causal", 20), ("autoencoder", 300), ("next_token", 4000)):
        for seed in range(2):
            folder = tmp_path / "runs" / f"{name}-seed{seed}"
            folder.mkdir(parents=True)
            first, last = (f'{{"step": 1, "tokens": {t}, "seconds": {t / 10}}}\n' for t in (1, tokens))
            (folder / "log.jsonl").write_text(first + last)
    settings = ClaimSettings(seeds=2)
    assert spent_on(("curriculum",), settings, tmp_path) == Spent(620, 62.0)
    assert spent_on(("curriculum", "curriculum_causal", "next_token"), settings, tmp_path).tokens == 8660
    assert spent_on((), settings, tmp_path) == Spent(0, 0.0)


def test_ctrl_c_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("memlm.cli.claims.measure_experiments", stopped)
    assert main(["claims", "--out", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "memlm: error: stopped, nothing is lost: the same command goes on.\n"


def test_the_command_prints_the_table_and_writes_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("memlm.cli.claims.measure_experiments", lambda *_, **__: (figures(), []))
    monkeypatch.setattr("memlm.cli.claims.spent_on", lambda experiments, *_: Spent(10**6 * len(experiments), 60.0))
    assert main(["claims", "--quick", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert out.count("| holds |") == 9
    assert out.endswith("Of 11 tests of the paper's claims 9 hold here, 0 do not, and 2 cannot be made at this size.\n")
    page = html.unescape((tmp_path / "claims.html").read_text(encoding="utf-8"))
    for claim in CLAIMS:
        assert claim.text in page
    assert "curriculum causal" in page  # the picture's rows
    assert "trained: 3.0 M tokens, 1 min" in page
    assert "<h2>Measurements" not in page
    assert (tmp_path / "claims.svg").read_text(encoding="utf-8").startswith("<svg")
