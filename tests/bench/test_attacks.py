"""The scoreboard: the document's form, its arithmetic, and that single runs say what they measured."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from btrain.bench import attacks, scoreboard
from btrain.bench.attacks import Match, job_of, loss_rows, matches, protocol_rows, run_jobs, with_option
from btrain.bench.chain import VOTE_BLOCKS
from btrain.bench.contest import Cell, Contest, Gradients, contest
from btrain.errors import ConfigError

FEW = ["--processes", "1", "--chain-runs", "50", "--protocol-seeds", "1", "--seeds", "1", "--rounds", "20"]


@pytest.fixture(autouse=True)
def short_chains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attacks, "CHAIN_ROUNDS_MAX", 60)


def run(result: dict[str, Any]) -> dict[str, Any]:
    return {"first": 2, "last": 4, "banned": 3, "deeds": ["wrong_gradient"], "absent": 0, "false_bans": 0, "forks": 0,
            "rounds": 9, "honest_peer_rounds": 45, "seconds": 3.0, "bytes": 2.0, "void_parts": 0,
            "loss": 0.5} | result  # fmt: skip


def test_the_chain_alone_is_one_json_document(capsys: pytest.CaptureFixture[str]) -> None:
    attacks.main(["--json", "--parts", "chain", *FEW])
    document = json.loads(capsys.readouterr().out)
    assert document["benchmark"] == "attacks" and document["members"] == 16
    assert len(document["chain"]) == 2 * len(attacks.SCHEDULES) * 2
    for row in document["chain"]:
        quantiles = {f"{which}_{name}" for which in ("first", "last") for name in ("median", "p95")}
        assert set(row) == {"byzantine", "when", "sweep", "runs", "shares", "last_quantiles"} | quantiles
        assert row["runs"] == 50 and len(row["shares"]) == len(row["last_quantiles"])


def test_a_match_says_who_was_banned_when_and_for_what() -> None:
    result = attacks.play_match(Match("nan", 4, 1, 0, rounds=8))
    assert (result["first"], result["last"], result["banned"], result["deeds"]) == (1, 1, 1, ["illegal_encoding"])
    assert (result["false_bans"], result["forks"]) == (0, 0)
    assert result["honest_peer_rounds"] == 3 * result["rounds"]


def test_what_the_log_holds_is_not_computed_again(tmp_path: Path) -> None:
    log = tmp_path / "log"
    done, new = (job_of("losses", Cell(rounds=rounds)) for rounds in (10**9, 2))
    log.write_text(json.dumps({"key": done.key, "result": {"train": "1.5", "held_out": "2.5"}}) + '\n{"key": "cu')
    results = run_jobs([done, new], 1, log)
    assert results[done.key] == {"train": "1.5", "held_out": "2.5"}
    assert math.isfinite(float(results[new.key]["train"]))
    assert [json.loads(line)["key"] for line in log.read_text().splitlines()] == [done.key, new.key]


def losses(seeds: int, of: dict[str | None, float]) -> dict[str, dict[str, Any]]:
    """Made-up results: by attack, the same on both splits; the plain mean ends at 0.5."""
    found = {}
    for _, _, cell in attacks.cells(seeds, 300):
        name = None if cell.attack is None else cell.attack.partition(":")[0]
        loss = 0.5 if cell.rule == "mean" else of.get(name, 1.0) + cell.seed * (name is not None) * 0.02
        found[job_of("losses", cell).key] = {"train": str(loss), "held_out": str(loss)}
    return found


def test_losses_are_compared_with_the_same_rule_and_with_the_aims() -> None:
    table = loss_rows(losses(3, {"alie": 1.04, "sign_flip": math.inf}), 3, 300)
    assert (table["rule_over_mean_train"], table["rule_over_mean_held_out"]) == (2.0, 2.0)
    rows = {(row["attack"], row["byzantine"], row["when"]): row for row in table["rows"]}
    assert len(rows) == len(attacks.PLANS) * len(attacks.GRADIENT_ATTACKS) + 1
    alie = rows["alie", 7, "from round 50"]
    assert (alie["train_mean"], alie["train_worst"]) == (pytest.approx(1.06), pytest.approx(1.08))
    assert scoreboard.share(alie, "train") == "**1.060 (1.080)**"
    assert scoreboard.share(rows["alie", 7, "1 round in 10"], "train") == "1.060 (1.080)"
    assert scoreboard.share(rows["sign_flip", 7, "from round 50"], "train") == "**diverged**"
    assert scoreboard.share(rows["ipm:epsilon=0.6", 3, "from round 50"], "held_out") == "1.020 (1.040)"


def test_the_page_names_what_found_each_attack(tmp_path: Path) -> None:
    wanted = matches(["alie", "sign_flip", "freeze", "lie", "kill"], 2)
    results = {job_of("protocol", match).key: run({}) for match in wanted}
    silent = run({"first": None, "last": None, "banned": 0, "deeds": [], "rounds": 14})
    for match in wanted:
        if match.attack in ("", "freeze", "lie", "kill"):
            absent, seconds = (2, 14.0) if match.attack in ("freeze", "kill") else (0, 3.0)
            results[job_of("protocol", match).key] = silent | {"absent": absent, "seconds": seconds}
    found = {
        "members": 16,
        "chain": attacks.chain_rows(10),
        "losses": loss_rows(losses(1, {}), 1, 300),
        "protocol": protocol_rows(results, wanted),
    }
    scoreboard.write(found, tmp_path / "board.md")
    text = (tmp_path / "board.md").read_text()
    assert "| alie | recomputed by a validator or the sweep, votes of a quorum | 2, 4 | 2, 4 |  |  |  |" in text
    assert f"| freeze | {scoreboard.SILENT} | -, - | -, - | 1.0 | 1.00 | 1.00 |" in text
    assert "| lie | b votes are no quorum" in text and "| kill | an honest peer" in text
    assert "**False bans: 0, forks: 0**" in text
    assert "| 7 of 16 | always | on | 2, 2 | 4, 4 |" in text


def test_gradients_are_those_of_the_model_and_the_public_seeds() -> None:
    gradients = Gradients(seed=3)
    x, seed = gradients.start(), bytes(range(32))
    (one,) = gradients.of(x, [seed], 16)
    torch.nn.utils.vector_to_parameters(x, gradients.model.parameters())
    rows = torch.from_numpy(attacks_rows(seed, 16, len(gradients.targets)))
    loss = torch.nn.functional.cross_entropy(gradients.model(gradients.inputs[rows]), gradients.targets[rows])
    expected = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(gradients.model.parameters()))])
    assert torch.allclose(one, expected, atol=1e-6)
    (flipped,) = gradients.of(x, [seed], 16, flip_labels=True)
    assert not torch.allclose(one, flipped, atol=1e-3)


def attacks_rows(seed: bytes, count: int, samples: int) -> Any:
    from btrain.sampling import batch_indices

    return batch_indices(seed, count, samples)


def test_an_attack_costs_and_is_over_when_all_are_banned() -> None:
    honest = contest(Cell(rounds=40))
    attacked = Contest(Cell("sign_flip:from=5", 7, rounds=40))
    assert attacked.train().train > 1.2 * honest.train
    assert attacked.play.over and bool((attacked.play.first_R >= 5 + 1 + VOTE_BLOCKS).all())
    assert contest(Cell(rounds=40)) == honest


def test_without_verification_nobody_is_banned() -> None:
    quiet = Contest(Cell("ipm:epsilon=0.1,from=2", 7, "off", rounds=8))
    quiet.train()
    assert bool((quiet.play.first_R == -1).all())


def test_names_take_one_more_option() -> None:
    assert with_option("alie", "from=50") == "alie:from=50"
    assert with_option("ipm:epsilon=0.1", "from=50") == "ipm:epsilon=0.1,from=50"
    with pytest.raises(ConfigError):
        Contest(Cell("no_such_attack", 3))
