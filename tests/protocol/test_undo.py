"""Returning to the common block: what a member signed and proved on the chain that fell, and what it must forget."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch

from btrain.checkpoint import checkpoint_paths, drop_checkpoints
from btrain.identity import SigningKey
from btrain.peer.store import Store
from btrain.protocol.agreement_messages import Final
from btrain.protocol.audit import GradientCheck
from btrain.protocol.behaviour import Behaviour
from btrain.protocol.charges import Charges
from btrain.protocol.court import Court
from btrain.protocol.desk import Desk
from btrain.protocol.effects import (
    AppendBlock,
    Effect,
    FetchBlob,
    Journal,
    PersistSigned,
    PutBlob,
    Recompute,
    RollBack,
    Send,
    Work,
)  # fmt: skip
from btrain.protocol.encoding import encode, sha256
from btrain.protocol.forks import FORK_ROUNDS_MAX
from btrain.protocol.ledger import CertifiedState, LedgerState
from btrain.protocol.member import Member
from btrain.protocol.messages import Accusation, Charge, Commit, Message, Objection, Trial, Verifier, sign
from btrain.protocol.packets import CertifiedBlock
from btrain.protocol.pieces import cut
from btrain.protocol.probation import Probation, Trainee
from btrain.protocol.seats import ASKED_ROUNDS, Membership, Seats
from btrain.protocol.trajectory import Undone
from btrain.protocol.trials import Session, Trials
from btrain.protocol.verdicts import GUILTY, UNSURE
from btrain.simulation.disk import Disk
from btrain.storage.run_directory import RunDirectory
from btrain.training.state import State
from tests.protocol.test_ledger import KEYS, PEERS, decided, start, statement

Run = Any  # the fixture of conftest.py
RUN = sha256(b"run")
KEY = SigningKey.from_seed(bytes([3]) * 32)


def desk() -> Desk:
    return Desk(KEY, RUN, Verifier())


def accusation(desk: Desk, round: int, of: int) -> Any:
    """Signed in a slot of the round, whatever the chain."""
    return desk.sign(desk.statement(Accusation(PEERS[0], of, bytes(32)), prev=RUN, round=round))


def test_no_slot_is_signed_anew_however_many_rounds_come_again() -> None:
    mine = desk()
    for round in range(FORK_ROUNDS_MAX + 1):
        accusation(mine, round, round)
        mine.forget(round - 1)
    mine.undo(1)
    for round in range(1, FORK_ROUNDS_MAX + 1):
        assert accusation(mine, round, 999).body.round == round


def test_what_was_signed_before_any_fork_that_can_be_healed_is_forgotten() -> None:
    mine = desk()
    for round in range(3 * FORK_ROUNDS_MAX):
        accusation(mine, round, round)
        mine.forget(round - 1)
    assert len(mine._over) <= FORK_ROUNDS_MAX + 1


def test_a_charge_goes_on_when_the_block_that_banned_has_fallen(run: Run) -> None:
    """Its accused holds a seat again, and the members of the other chain may not have heard of it."""
    state = start(run)
    charges = Charges(Desk(KEY, state.run, Verifier()), Behaviour(), state)
    charges.standing[PEERS[1], None] = charge = Charge(PEERS[1], 0, "equivocation", bytes(32))
    banned = advanced(state, {0: {"charges": (charge,)}, 2: {"charges": (charge,)}, 3: {"charges": (charge,)}})
    charges.stand_at(banned)
    assert charges.standing == {} and charges.listed(banned) == ()
    charges.undo(0)
    other = advanced(state, {})
    charges.stand_at(other)
    assert charges.listed(other) == (charge,)
    assert [message.body for message in charges.desk.signed.values()] == [charge]


def test_a_charge_outlives_a_power_cut_of_everybody(run: Run) -> None:
    """Else who was proven guilty just before would go free: nobody finds it again."""
    world = run.world(4, 12, seed=1)
    world.run(3, 60_000_000)
    guilty = world.honest[3]
    twice = Desk(world.identities[guilty].key, world.genesis.run, Verifier())
    statements = [twice.statement(Final(bytes([i]) * 32), prev=bytes(32), round=2) for i in range(2)]
    finals = [sign(twice.key, statement) for statement in statements]
    for peer in world.honest[:3]:
        node = world.node(peer)
        assert node is not None
        node.member.charges.charge("equivocation", guilty, 2, finals, [])
        node._run(node.member.desk.take())
    for peer in world.honest[:3]:
        world.heap.crash(peer, world.heap.now)
        world.heap.restart(peer, world.heap.now + 1_000)
    world.heap.run(world.heap.now + 5_000_000)
    blocks = world.blocks(world.honest[0])
    assert [(ban.peer, ban.deed) for block in blocks for ban in block.bans] == [(guilty, "equivocation")]


def advanced(state: LedgerState, commits: dict[int, dict[str, Any]]) -> LedgerState:
    return state.advance(decided(state, commits))


def test_a_farewell_outlasts_the_fork_and_requests_are_made_anew(run: Run) -> None:
    seats = Seats(desk(), Membership(bytes(32), bytes(32), 0.0, bytes(32)))
    seats.leaves(PEERS[2], 40)
    seats.undo(10)
    assert seats.departures(10 + ASKED_ROUNDS) == (PEERS[2],)
    assert seats.departures(10 + ASKED_ROUNDS + 1) == ()


def probation(run: Run, round: int = 3) -> tuple[Trials, Session, Message]:
    """A member, the session of a round in which it is the only auditor, and the Trial that was handed in then."""
    state = replace(start(run), round=round + 1, probation=Probation(4, (Trainee(PEERS[4], (bytes(32), 0), 4, 0),)))
    mine = desk()
    trials = Trials(mine, Behaviour(), Charges(mine, Behaviour(), state), state)
    roles = replace(state.roles(), round=round)
    trial = statement(state, 4, Trial((bytes(32),) * roles.layout.parts), "trial")
    session = Session(roles, bytes(32), bytes(32), {PEERS[4]: mine.me}, {PEERS[4]: trial})
    trials._sessions[round] = session
    return trials, session, trial


def recompute(trials: Trials) -> list[Effect]:
    """The answers to all that is being recomputed: another gradient."""
    for effect in trials.desk.take():
        if isinstance(effect, Recompute):
            trials.recomputed(effect.token, torch.ones(3000), torch.ones(3000))
    for effect in trials.desk.take():
        if isinstance(effect, Work):
            trials.work_done(effect.token, effect.job())
    return trials.desk.take()


def test_a_trainee_is_not_judged_by_what_it_did_on_the_chain_that_fell(run: Run) -> None:
    trials, _, _ = probation(run)
    trials.audit()
    trials.undo(2)
    assert recompute(trials) == [] and trials.judgements == {}
    trials.audit()
    assert trials.desk.take() == []


def test_the_audit_of_a_trial_from_before_the_fork_goes_on(run: Run) -> None:
    trials, session, trial = probation(run)
    trials.audit()
    trials.undo(4)
    trials.audit()
    assert [effect.hash for effect in recompute(trials) if isinstance(effect, FetchBlob)]
    trials.blob(bytes(32), None)
    assert trials.judgements == {(PEERS[4], 3): UNSURE}
    trials._check(session, trial, PEERS[1])  # what is over can be asked again
    recompute(trials)
    trials.blob(bytes(32), None)
    assert trials.judgements == {(PEERS[4], 3): UNSURE}


def test_an_accusation_whose_slot_is_used_up_stands_in_the_commits(run: Run) -> None:
    """Of audits that end in one round the second one's finding is not lost."""
    state = replace(start(run), round=5)
    mine = Desk(KEYS[0], state.run, Verifier())
    court = Court(mine, Behaviour(), lambda below: 0, state, Charges(mine, Behaviour(), state))
    for of in (2, 3):
        court.records[of + 1] = SimpleNamespace(roles=SimpleNamespace(validators=(mine.me,)))  # type: ignore[assignment]
        commit = statement(state, of, Commit((bytes(32),), (), (), (), (), (), 0, 0))
        court._accuse(GradientCheck("", commit, replace(state.roles(), round=of), bytes(32), 1e-4))
    assert [message.body.round for message in mine.signed.values()] == [2]
    assert {(v.accused, v.round, v.vote) for v in court.listed_verdicts(state.roster, 5)} == {
        (PEERS[2], 2, GUILTY),
        (PEERS[3], 3, GUILTY),
    }


def test_an_objection_whose_slot_is_used_up_is_made_in_the_next_round(run: Run) -> None:
    """By one to another trial, or by one that was signed on the chain that fell."""
    trials, session, trial = probation(run)
    earlier = replace(session, roles=replace(session.roles, round=2))
    trials._sessions[2] = earlier
    for known in (earlier, session):
        trials._check(known, trial, None)
    recompute(trials)
    trials.blob(bytes(32), None)
    state = replace(trials.state, round=trials.state.round + 1)
    trials.stand_at(state)
    made = [m for m in trials.desk.signed.values() if isinstance(m.body, Objection)]
    assert [(m.statement.round, m.body.round) for m in made] == [(4, 2), (5, 3)]
    trials.stand_at(replace(state, round=6))
    assert len(trials.desk.signed) == len(made)
    told = [effect for effect in trials.desk.take() if isinstance(effect, Send)]
    assert len(told) == 2


def test_the_disk_lets_a_peer_sign_in_every_round_that_can_come_again(run: Run, tmp_path: Path) -> None:
    state = start(run)
    with closing(RunDirectory.open(tmp_path, contract=bytes(32), identity=KEY.public_key)) as directory:
        store = Store(directory, state.charter)
        for round in range(FORK_ROUNDS_MAX + 1):
            store.commit([PersistSigned(b"dead %d" % round, round, b"x"), AppendBlock(round, b"block", (), 0)])
        store.commit([RollBack(1), AppendBlock(1, b"another", (), 0), PersistSigned(b"new 2", 2, b"y")])
        assert directory.signed.get(b"dead 2") is not None and directory.signed.get(b"new 2") is not None


def test_the_journal_of_the_chain_that_stands_outlives_the_return_to_it(run: Run, tmp_path: Path) -> None:
    """Its next round may be opened by the very input that shows the fork."""
    fallen, standing = Journal("engine:0:aa", 3, b"fallen"), Journal("engine:0:bb", 3, b"standing")
    batch = [fallen, RollBack(2), AppendBlock(2, b"another", (), 0), standing]
    disk = Disk(blocks=[CertifiedBlock(b"block", ())] * 3)
    disk.begin(batch)
    disk.sync(32)
    assert disk.journal == [(3, "engine:0:bb", b"standing")]
    with closing(RunDirectory.open(tmp_path, contract=bytes(32), identity=KEY.public_key)) as directory:
        store = Store(directory, start(run).charter)
        store.commit([AppendBlock(round, b"block", (), 0) for round in range(3)])
        store.commit(batch)
        assert store.open_round(3)[1] == [(3, "engine:0:bb", b"standing")]
        assert Store(directory, store.charter).open_round(3)[1] == [(3, "engine:0:bb", b"standing")]


def test_a_crash_while_a_chain_is_given_up_leaves_no_checkpoint_of_it(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(RunDirectory.open(tmp_path, contract=bytes(32), identity=KEY.public_key)) as directory:
        store = Store(directory, start(run).charter)
        (directory.checkpoints / "round-00000002").mkdir()

        def killed(height: int) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(directory.ledger, "roll_back", killed)
        with pytest.raises(KeyboardInterrupt):
            store.commit([RollBack(1)])
        assert checkpoint_paths(directory.checkpoints) == []


def test_no_checkpoint_of_a_block_that_has_fallen_is_written(run: Run, tmp_path: Path) -> None:
    """It may have been under way when the chain was given up."""
    with closing(RunDirectory.open(tmp_path, contract=bytes(32), identity=KEY.public_key)) as directory:
        store = Store(directory, start(run).charter)
        state = cut(State(0, {"parameter/w": torch.ones(4)}, {}).to_bytes())
        pieces = [(state.digest, encode(state.manifest)), *zip(state.manifest.pieces, state.pieces, strict=True)]
        appended, certified = AppendBlock(0, b"block", (), 0), CertifiedState(0, state.digest)
        store.commit([*(PutBlob(hash, data, 0) for hash, data in pieces), appended])
        store.save_certified(certified, appended, 3)
        assert len(checkpoint_paths(directory.checkpoints)) == 1
        store.commit([RollBack(0), AppendBlock(0, b"another", (), 0)])
        store.save_certified(certified, appended, 3)
        assert checkpoint_paths(directory.checkpoints) == []


def test_a_decision_of_the_chain_that_fell_is_not_gone_on_with(run: Run) -> None:
    """A crash may leave its journal: its round of the same number comes again, behind another block."""
    world = run.world(3, 8)
    world.run(3, 60_000_000)
    identity = world.identities[world.honest[0]]
    node = world.node(world.honest[0])
    assert node is not None and node.member.round is not None
    journal = [entry for entry in identity.disk.journal if entry[0] >= node.member.state.round]

    def restarted(state: LedgerState) -> Member:
        member = Member(
            identity.key, state, identity.membership, identity.disk, x_round=state.round, behaviour=Behaviour(),
            verifier=identity.verifier, draw=lambda below: 0,
        )  # fmt: skip
        member.start(0, {}, journal)
        return member

    def goes_on(member: Member) -> bool:
        assert member.round is not None
        engine = member.round.engines[0]
        return engine is not None and engine._restored

    state = node.member.state
    assert goes_on(restarted(state))
    assert not goes_on(restarted(replace(state, head=bytes(32))))


def test_a_checkpoint_of_the_chain_that_fell_goes(tmp_path: Path) -> None:
    for round, block in ((8, b"8"), (16, b"18"), (24, b"24"), (32, None)):
        (tmp_path / f"round-{round:08d}").mkdir()
        if block is not None:
            (tmp_path / f"round-{round:08d}" / "block").write_bytes(block)
    drop_checkpoints(tmp_path, lambda block: int(block or b"32") >= 17)
    assert [path.name for path in checkpoint_paths(tmp_path)] == ["round-00000008"]
    drop_checkpoints(tmp_path / "nothing yet", lambda _: True)


@pytest.fixture
def contested(run: Run, tmp_path: Path) -> Iterator[tuple[Store, LedgerState, bytes]]:
    """A run that settled on the state of round 2 in block 4 and certified another one in block 6; checkpoints of both,
    nothing in custody; and the first of the states."""
    state = start(run)
    first, second = (State(step, {"parameter/w": torch.ones(4)}, {}).to_bytes() for step in (2, 6))
    certified = {4: CertifiedState(2, cut(first).digest), 6: CertifiedState(6, cut(second).digest)}
    with closing(RunDirectory.open(tmp_path, contract=bytes(32), identity=KEY.public_key)) as directory:
        store = Store(directory, state.charter)
        empty = decided(state, {i: {} for i in range(5)})
        for round in range(8):
            states = (certified[round],) if round in certified else ()
            block = encode(msgspec.structs.replace(empty, round=round, state=states))
            store.commit([AppendBlock(round, block, (), 0)])
            for found in states:
                store.save_state(found.round, first if round == 4 else second, block, (), 3)
        yield store, replace(state, round=8), first


def test_a_checkpoint_is_found_by_the_block_that_certifies_it(contested: tuple[Store, LedgerState, bytes]) -> None:
    store, ledger, first = contested
    assert store.certified_state(ledger)[0] == 6  # type: ignore[index]
    shutil.rmtree(store.directory.checkpoints / "round-00000006")
    assert store.certified_state(ledger) == (2, first)


def test_nobody_starts_from_a_state_that_was_undone(contested: tuple[Store, LedgerState, bytes]) -> None:
    store, ledger, first = contested
    undone = replace(ledger.trajectory, undone=(Undone(5, 7),))
    assert store.certified_state(replace(ledger, trajectory=undone)) == (2, first)


def test_the_checkpoint_of_a_settled_contest_goes_with_its_block(contested: tuple[Store, LedgerState, bytes]) -> None:
    store, _, _ = contested
    store.commit([RollBack(5)])
    assert [path.name for path in checkpoint_paths(store.directory.checkpoints)] == ["round-00000002"]
    store.commit([RollBack(3)])
    assert checkpoint_paths(store.directory.checkpoints) == []
