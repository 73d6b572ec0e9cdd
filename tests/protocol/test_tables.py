"""Rows, masks of links, and the limits that a Table is held against."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from btrain.adversary.aggregator import rounded_up, shifted
from btrain.aggregation import CenteredClip, Mean, Reduction, Rule, get_rule, reduce_with_report
from btrain.kernels import BLOCK, QuantizedBlocks, dequantize_blockwise, quantize_blockwise, sketch, weighted_sum
from btrain.protocol.messages import ROW_BYTES, Table
from btrain.protocol.table_limits import DOUBTFUL, SOUND, UNSOUND, Judgement, judge
from btrain.protocol.tables import UNIT, link_mask, masked, packed, read_row, row_of, rows_of, sketch_seed

SEED = bytes(range(32))
PEERS = tuple(bytes([i]) * 32 for i in range(9))


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@dataclass
class Case:
    """A part reduced by a rule over these contributions, and its honest Table."""

    sent: list[QuantizedBlocks]
    rule: Rule
    reduction: Reduction

    @classmethod
    def of(cls, x_ND: Tensor, rule: Rule | None = None) -> Case:
        sent = [quantize_blockwise(x) for x in x_ND]
        used = CenteredClip() if rule is None else rule
        return cls(sent, used, reduce_with_report({bytes([i]): q for i, q in enumerate(sent)}, used))

    def table(self, part: QuantizedBlocks | None = None, seed: bytes = SEED) -> Table:
        tau = math.inf if self.reduction.tau is None else self.reduction.tau
        return Table(bytes(32), b"", tau, rows_of(self.sent, part or self.reduction.blocks, seed))

    def judged(self, table: Table | None = None, **changes: Any) -> Judgement:
        given = {"contributors": len(self.sent), "coefficients": self.reduction.coefficients,
                 "reduced": self.reduction.blocks, "rule": self.rule, "seed": SEED} | changes  # fmt: skip
        return judge(table or self.table(given["reduced"], given["seed"]), **given)

    @property
    def error(self) -> float:
        return math.sqrt(BLOCK / 12 * float(self.reduction.blocks.scales.double().square().sum()))


def usual(contributors: int = 15, numel: int = 3000) -> Tensor:
    return noise(contributors, numel) + noise(numel, seed=1)


# --- rows ---


def test_a_row_is_the_distance_and_the_sketch_rounded_once() -> None:
    part, result = quantize_blockwise(noise(3000)), quantize_blockwise(noise(3000, seed=1))
    row = row_of(part, result, SEED)
    said = read_row(row)
    gap = dequantize_blockwise(part).double() - dequantize_blockwise(result).double()
    assert len(row) == ROW_BYTES
    assert said.norm * UNIT == pytest.approx(float(gap.norm()), rel=1e-6)
    exact = sketch([part.codes], [part.scales], SEED)[0].numpy() / UNIT
    assert np.abs(said.codes).max() == 32767
    assert np.abs(said.buckets - exact).max() <= np.abs(exact).max() / 65534 * (1 + 1e-6)


@example(-134, [0.0] * 63 + [0.9769438171784239])  # peaks so small that a step of float32 is much of them
@example(-139, [0.9582814304071632] + [0.0] * 63)
@given(st.integers(-140, 120), st.lists(st.floats(-1, 1), min_size=64, max_size=64))
def test_a_packed_row_is_legal_and_as_near_as_it_says(exponent: int, numbers: list[float]) -> None:
    sketch_S = np.array(numbers) * 2.0**exponent
    row = read_row(packed(1.0, sketch_S))
    assert row.legal
    assert np.linalg.norm(row.buckets - sketch_S) <= row.error * (1 + 1e-9) + 64 * 2.0**-150


def test_rows_that_no_rounding_makes_are_illegal() -> None:
    row = read_row(packed(1.0, np.arange(-10.0, 54.0)))
    assert row.legal
    for change in ({"peak": 4 * row.peak, "codes": row.codes / 4}, {"peak": 0.0}, {"codes": row.codes * 0},
                   {"codes": np.full(64, -32768.0)}, {"peak": math.inf}, {"norm": -1.0}):  # fmt: skip
        assert not row._replace(**change).legal
    assert row._replace(peak=0.0, codes=row.codes * 0).legal


def test_a_row_has_the_same_bits_in_any_company_and_with_any_number_of_threads() -> None:
    case = Case.of(usual(5, 40 * BLOCK))
    alone = [row_of(part, case.reduction.blocks, SEED) for part in case.sent]
    threads = torch.get_num_threads()
    for count in (1, 3):
        torch.set_num_threads(count)
        assert list(rows_of(case.sent, case.reduction.blocks, SEED)) == alone
    torch.set_num_threads(threads)


def test_equal_vectors_are_at_distance_zero_and_an_illegal_one_has_no_row() -> None:
    part = quantize_blockwise(noise(2000))
    assert read_row(row_of(part, part, SEED)).norm == 0.0
    assert rows_of([None, part], part, SEED)[0] == b""


def test_every_part_has_a_seed_of_its_own() -> None:
    assert len({sketch_seed(SEED, part) for part in range(64)}) == 64
    assert sketch_seed(SEED, 0) != sketch_seed(bytes(32), 0)


@given(st.integers(1, 9), st.sets(st.sampled_from(PEERS)))
def test_a_mask_names_the_members_that_it_was_made_of(count: int, linked: set[bytes]) -> None:
    members = PEERS[:count]
    mask = link_mask(members, linked)
    assert masked(members, mask) == tuple(peer for peer in members if peer in linked)
    assert masked(members, mask + b"\0") is None
    assert masked(members, b"") is None


def test_a_mask_with_a_bit_beyond_the_members_is_none() -> None:
    assert masked(PEERS[:3], b"\x08") is None


# --- honest tables ---

RULES = [CenteredClip(), CenteredClip(c=2.0), CenteredClip(tau=40.0), Mean(), get_rule("geometric_median"),
         get_rule("krum"), get_rule("multi_krum"), get_rule("nearest_neighbor_mixing")]  # fmt: skip


@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("contributors", [1, 2, 3, 15])
def test_an_honest_table_is_sound(rule: Rule, contributors: int) -> None:
    if contributors < 3 and not isinstance(rule, CenteredClip | Mean):
        pytest.skip("the rule needs three")
    for x_ND in (
        usual(contributors),
        usual(contributors, 40),
        usual(contributors) * 1e-30,
        torch.ones(contributors, 70),
    ):
        assert Case.of(x_ND, rule).judged().verdict == SOUND


HOSTILE = {
    "zeros": lambda x: x * 0,
    "huge": lambda x: torch.full_like(x, 1e38) * x.sign(),
    "a thousandfold": lambda x: x * -1000,
    "copies": lambda x: x[:1].expand_as(x),
    "sparse": lambda x: x * (torch.arange(x.shape[1]) % 500 == 0),
    "a hair apart": lambda x: x * (1 + 1e-6),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_contributors_send_makes_no_honest_table_unsound(name: str) -> None:
    x_ND = usual()
    x_ND[8:] = HOSTILE[name](x_ND[8:])
    for rule in RULES:
        if not isinstance(rule, Mean):
            judgement = Case.of(x_ND, rule).judged()
            assert (judgement.verdict, judgement.reason) == (SOUND, "")


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 2500), st.floats(1e-6, 1e6), st.integers(0, 2**20))
def test_honest_tables_of_any_size_raise_no_alarm(contributors: int, numel: int, scale: float, seed: int) -> None:
    x_ND = (noise(contributors, numel, seed=seed) + noise(numel, seed=seed + 1)) * scale
    judgement = Case.of(x_ND).judged(seed=seed.to_bytes(32, "little"))
    assert judgement.verdict == SOUND
    assert judgement.alarm <= 1


def test_contributors_that_steer_the_rounding_raise_alarms_and_void_nothing() -> None:
    x_ND = usual()
    for _ in range(4):
        case = Case.of(x_ND)
        steps = case.reduction.blocks.scales.repeat_interleave(BLOCK)[:3000]
        coefficients = torch.tensor(case.reduction.coefficients, dtype=torch.float64)
        exact = weighted_sum([q.codes for q in case.sent], [q.scales for q in case.sent], coefficients)[:3000]
        x_ND[-1] += (((exact / steps).floor() + 0.5) * steps - exact) / case.reduction.coefficients[-1]
    case = Case.of(x_ND)
    judgements = [case.judged(seed=bytes([i]) * 32) for i in range(40)]
    assert max(j.alarm for j in judgements) > 0.6
    assert {j.verdict for j in judgements} == {SOUND}


# --- tables that do not fit ---


def test_a_shifted_part_is_unsound_and_a_small_shift_an_alarm() -> None:
    case = Case.of(usual())
    for errors, verdict in ((2.0, SOUND), (6.0, UNSOUND), (30.0, UNSOUND), (1e6, UNSOUND)):
        part = shifted(case.reduction.blocks, errors * case.error, 3)
        judgement = case.judged(case.table(part), reduced=part)
        assert (judgement.verdict, judgement.alarm > 1) == (verdict, True)
    assert judgement.reason.startswith("sum")


def test_directed_rounding_raises_an_alarm() -> None:
    case = Case.of(usual())
    coefficients = torch.tensor(case.reduction.coefficients, dtype=torch.float64)
    exact = weighted_sum([q.codes for q in case.sent], [q.scales for q in case.sent], coefficients)
    part = rounded_up(exact, 3000)
    alarms = [case.judged(case.table(part, s := bytes([i]) * 32), reduced=part, seed=s).alarm > 1 for i in range(30)]
    assert sum(alarms) >= 28


def forged(row: bytes, norm: float = 1.0, turn: float = 1.0) -> bytes:
    head = np.frombuffer(row[:8], "<f4").copy()
    head *= np.array([norm, turn], "<f4")
    return head.tobytes() + row[8:]


def changed(case: Case, **fields: Any) -> Table:
    return msgspec.structs.replace(case.table(), **fields)


def test_every_misfit_has_a_name() -> None:
    case = Case.of(usual())
    far = Case.of(usual() * torch.tensor([1.0] * 14 + [5.0])[:, None])
    rows = case.table().rows
    equal = (1 / 15,) * 15
    near = dict(enumerate(rows)) | {0: forged(rows[0], norm=0.1)}
    misfits: list[tuple[str, int, Judgement]] = [
        ("rows: not one", UNSOUND, case.judged(changed(case, rows=rows[1:]))),
        ("rows: not one", UNSOUND, case.judged(changed(case, rows=(rows[0][:-1], *rows[1:])))),
        ("rows: not as many", UNSOUND, case.judged(changed(case, rows=(b"", *rows[1:])))),
        ("rows: a number", UNSOUND, case.judged(changed(case, rows=(forged(rows[0], norm=math.nan), *rows[1:])))),
        ("rows: a number", UNSOUND, case.judged(changed(case, rows=(forged(rows[0], turn=math.inf), *rows[1:])))),
        ("rows: a number", UNSOUND, case.judged(changed(case, tau=-1.0))),
        ("coefficients: no", UNSOUND, case.judged(coefficients=(0.5,) * 15)),
        ("coefficients: no", UNSOUND, case.judged(coefficients=(-1.0, 2.0, *(0.0,) * 13))),
        ("tau: larger", UNSOUND, case.judged(changed(case, tau=10 * float(case.reduction.tau or 0)))),
        ("tau: not the", UNSOUND, case.judged(rule=CenteredClip(tau=3.0))),
        ("coefficients: do not", UNSOUND, far.judged(changed(far, tau=float(far.reduction.tau or 0) / 3))),
        ("distance", DOUBTFUL, case.judged(changed(case, rows=tuple(near.values())))),
    ]
    for reason, verdict, judgement in misfits:
        assert judgement.verdict == verdict, (reason, judgement)
        assert judgement.reason.startswith(reason), judgement
    assert case.judged(changed(case, tau=math.inf), coefficients=equal).verdict == UNSOUND


def test_a_contributor_said_to_be_illegal_voids_the_part_and_blames_nobody() -> None:
    case = Case.of(usual(14))
    table = msgspec.structs.replace(case.table(), rows=(b"", *case.table().rows))
    judgement = case.judged(table, contributors=15)
    assert (judgement.verdict, judgement.reason.split(":")[0]) == (
        DOUBTFUL,
        "a contributor is said to have sent an illegal encoding",
    )


def test_a_sum_of_nothing_is_zero() -> None:
    zero, other = quantize_blockwise(torch.zeros(1000)), quantize_blockwise(torch.ones(1000))
    table = Table(bytes(32), b"", math.inf, (b"", b""))
    assert judge(table, 2, (), zero, CenteredClip(), SEED).verdict == DOUBTFUL
    assert judge(table, 2, (), other, CenteredClip(), SEED).verdict == UNSOUND


def test_a_mean_of_two_is_not_clipped() -> None:
    case = Case.of(usual(2))
    assert case.judged(changed(case, tau=1.0)).reason.startswith("tau: two")


@pytest.mark.parametrize(("spread", "hidden"), [(0.3, True), (20.0, False), (1e6, False)])
def test_seven_friends_of_fifteen_hide_a_shift_of_a_few_spreads_and_no_more(spread: float, hidden: bool) -> None:
    # They forge their own rows as the limits allow: near the part by their norms, as far as it goes by their sketches.
    case = Case.of(usual())
    part = shifted(case.reduction.blocks, spread * math.sqrt(2 * 3000), 5)
    honest = [row_of(q, part, SEED) for q in case.sent[:8]]
    norms = np.array([read_row(row).norm for row in honest])
    reduced_S = sketch([part.codes], [part.scales], SEED)[0].numpy() / UNIT
    tau = 2 * float(norms.min()) * 0.999
    weights = np.minimum(1.0, tau / norms)
    gaps = np.stack([read_row(row).buckets - reduced_S for row in honest])
    pull_S = (weights[:, None] * gaps).sum(0) / 7
    claimed = float(np.linalg.norm(pull_S)) / 3.0
    friend = packed(claimed, reduced_S - pull_S)
    everybody = np.concatenate((weights, np.ones(7)))
    table = Table(bytes(32), b"", tau * UNIT, (*honest, *[friend] * 7))
    judgement = case.judged(table, reduced=part, coefficients=tuple(everybody / everybody.sum()))
    assert (judgement.verdict == SOUND) is hidden
    if not hidden:
        assert judgement.reason.startswith("majority")
