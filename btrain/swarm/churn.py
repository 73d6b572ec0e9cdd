"""Churn among real processes: peers come, leave in order and are killed by a seeded plan, attackers among them.

First the swarm is left alone, to see how many rounds it makes; then peers come and go; then everybody who is there must
take part again, and leaves. What must hold is checked on the way and at the end: `ChurnReport.faults` names what did
not.
"""

from __future__ import annotations

import os
import random
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

from btrain.errors import BtrainError
from btrain.peer.options import PeerOptions
from btrain.protocol.quorum import byzantine_limit, validators_max
from btrain.swarm.churn_plan import SETTLED_ROUNDS, ChurnPlan, Participant
from btrain.swarm.churn_report import ChurnReport, report_of
from btrain.swarm.footprint import footprint
from btrain.swarm.processes import Processes, start_server, stop_server

TICK_S = 0.1
SAMPLE_S = 1.0
PATIENCE_S = 60.0
OVERLAP = 3  # newcomers come as a period begins; whom they replace goes when one such part of it is over

Say = Callable[[str], None]


class Churn:
    """One run of a plan in a new folder."""

    def __init__(self, plan: ChurnPlan, run_dir: Path, say: Say) -> None:
        self.plan, self.run_dir, self._say = plan, run_dir, say
        self._random = random.Random(plan.seed)
        self._attacks = cycle(plan.attacks)
        self._spare = plan.prepare(run_dir)
        self.everybody: dict[str, Participant] = {}
        self._here: list[Participant] = []  # honest, not told to go, the oldest first
        self._restarts: list[tuple[float, Participant]] = []
        self._processes = Processes(plan.contract(self._spare))
        self._stepped: dict[int, tuple[float, bool]] = {}  # round -> when it was first decided, whether it was void
        self._round = 0  # the newest that any peer has begun, with so many members and present ones
        self._seats = self._present = plan.peers
        self._banned: set[str] = set()
        self._freed: set[str] = set()  # whose seats are free again
        self._sampled_at = 0.0
        self.faults: list[str] = []

    def run(self) -> ChurnReport:
        """Run the plan to its end. Raises BtrainError if the run is never founded."""
        plan = self.plan
        with _temporary_files_in(self.run_dir / "tmp"):
            start_server()
            try:
                with self._processes:
                    self._found()
                    quiet = self._rate(plan.quiet_s)
                    before = {p.name: p.footprints[-1] for p in self._running if p.footprints}
                    self._say(f"quiet: {quiet:.1f} rounds a minute")
                    churned = self._churn()
                    self._say(f"churn: {churned:.1f} rounds a minute")
                    self._settle()
                    after = {p.name: p.footprints[-1] for p in self._running if p.footprints}
                    self._leave()
            finally:
                stop_server()
        lives = {name: (before[name], after[name]) for name in before.keys() & after}
        return report_of(plan, self.run_dir, self.everybody.values(), (quiet, churned), lives, self.faults)

    # --- the three times ---

    def _found(self) -> None:
        plan = self.plan
        attackers = set(range(plan.peers - plan.attackers, plan.peers))
        for index in range(plan.peers):
            peer = self._start_next(next(self._attacks) if index in attackers else None)
            if index == 0:
                self._until(lambda peer=peer: peer.address is not None, "the first peer listens")  # type: ignore[misc]
        if not self._until(lambda: len(self._stepped) > SETTLED_ROUNDS, "the run is founded"):
            raise BtrainError(f"no run was founded: {self.faults}")

    def _rate(self, seconds: float) -> float:
        begin = time.monotonic()
        self._pass_until(begin + seconds)
        stepped = sum(begin <= at and not void for at, void in self._stepped.values())
        return 60 * stepped / seconds

    def _churn(self) -> float:
        plan, begin = self.plan, time.monotonic()
        for period in range(plan.periods):
            start = begin + period * plan.period_s
            for _ in range(plan.replaced):
                self._start_next(None)
            self._replace_banned()
            self._pass_until(start + plan.period_s / OVERLAP)
            if period % plan.kill_every == 0:
                self._kill_and_restart()
            self._go(kill=period % plan.kill_every == plan.kill_every - 1)
            self._pass_until(start + plan.period_s)
        stepped = sum(begin <= at and not void for at, void in self._stepped.values())
        return 60 * stepped / (plan.periods * plan.period_s)

    def _settle(self) -> None:
        """Whoever is there takes part, and the run goes on."""
        self._until(lambda: not self._restarts, "the killed are started again")
        self._until(lambda: all(peer.takes_part for peer in self._here), "everybody takes part")
        goal = max(self._stepped) + SETTLED_ROUNDS
        self._until(lambda: max(self._stepped) >= goal, "the run goes on after the churn")

    def _leave(self) -> None:
        for peer in self._running:
            self._tell_to_leave(peer)
        end = time.monotonic() + PATIENCE_S
        while self._running and time.monotonic() < end:
            self._tick()
        self.faults += [f"{peer.name} did not end when it was told to" for peer in self._running]
        for peer in self.everybody.values():
            peer.exit_code = self._processes.running[peer.name].exit_code

    # --- who comes and goes ---

    @property
    def _staying(self) -> Participant:
        """The honest peer that never goes: what it holds shows what a long life costs."""
        return list(self.everybody.values())[1]

    @property
    def _running(self) -> list[Participant]:
        return [p for p in self.everybody.values() if not self._processes.ended(p.name)]

    def _start_next(self, attack: str | None) -> Participant:
        peer = self._spare.pop(0)
        peer.attack = attack
        self.everybody[peer.name] = peer
        if attack is None:
            self._here.append(peer)
        self._start(peer)
        return peer

    def _start(self, peer: Participant) -> None:
        """Start it, or start it again: then without being told where the others are."""
        known = [p.address for p in self._here if p.takes_part and p.address is not None]
        first = next(iter(self.everybody.values()))
        if not known and first.address is not None:
            known = [first.address]
        join = (self._random.choice(known),) if known and not peer.kills else ()
        peer.takes_part, peer.started_at = False, time.monotonic()
        process = self._processes.start(
            peer.name,
            PeerOptions(run_dir=peer.run_dir, identity=peer.run_dir / "identity.key", join=join, adversary=peer.attack,
                        attack_from=self.plan.attack_from),
        )  # fmt: skip
        pid = process.process.pid
        assert pid is not None
        peer.pids.append(pid)

    def _replace_banned(self) -> None:
        """The place of a banned attacker goes to a new identity, which attacks as the next of the plan does."""
        for peer in [p for p in self.everybody.values() if p.attack is not None and p.peer_id in self._banned]:
            if not peer.told_to_leave:
                peer.told_to_leave = True
                self._start_next(next(self._attacks))

    def _go(self, kill: bool) -> None:
        """The oldest go, all but the one that stays, as many as have been replaced; the last of them is killed if so
        many may fail."""
        may_go = [peer for peer in self._here if peer is not self._staying and peer.takes_part]
        going = may_go[: min(self.plan.replaced, max(0, self._present - self.plan.peers))]
        victim = going.pop() if kill and going and self._may_fail() else None
        for peer in going:
            self._here.remove(peer)
            self._tell_to_leave(peer)
        if victim is not None:
            self._here.remove(victim)
            self._kill(victim)

    def _kill_and_restart(self) -> None:
        candidates = [peer for peer in self._here if peer is not self._staying and peer.takes_part]
        if candidates and self._may_fail():
            victim = self._random.choice(candidates)
            self._kill(victim)
            self._restarts.append((time.monotonic() + self._random.uniform(0.1, 1.0) * self.plan.period_s, victim))

    def _may_fail(self) -> bool:
        """Whether one more may fail: crashed and Byzantine members are at most b at any time."""
        attackers = [p for p in self.everybody.values() if p.attack is not None and p.peer_id not in self._banned]
        killed = [p for p in self.everybody.values() if p.attack is None and p.kills and not p.takes_part]
        down = [p for p in killed if p.peer_id not in self._freed]
        limit = byzantine_limit(self._seats, validators_max(self._seats, 1))
        return len(attackers) + len(down) < min(limit, self.plan.byzantine_max)

    def _kill(self, peer: Participant) -> None:
        peer.kills += 1
        peer.takes_part = False
        running = self._processes.running[peer.name]
        running.kill()
        running.process.join()
        self._say(f"killed {peer.name} in round {max(peer.decided, default=-1) + 1}")

    def _tell_to_leave(self, peer: Participant) -> None:
        peer.told_to_leave = True
        if self._processes.running[peer.name].exit_code is None:
            os.kill(peer.pids[-1], signal.SIGINT)

    # --- time ---

    def _until(self, reached: Callable[[], bool], what: str) -> bool:
        end = time.monotonic() + PATIENCE_S
        while not reached():
            if time.monotonic() > end:
                self.faults.append(f"waited {PATIENCE_S:.0f} s in vain: {what}")
                return False
            self._tick()
        return True

    def _pass_until(self, at: float) -> None:
        while time.monotonic() < at:
            self._tick()

    def _tick(self) -> None:
        for name, event in self._processes.wait(TICK_S):
            self._take(self.everybody[name], event)
        now = time.monotonic()
        for due, peer in list(self._restarts):
            if due <= now and self._processes.ended(peer.name):
                self._restarts.remove((due, peer))
                self._start(peer)
        if now - self._sampled_at >= SAMPLE_S:
            self._sampled_at = now
            for peer in self._running:
                found = footprint(peer.pids[-1])
                peer.footprints += [found] if found is not None else []

    def _take(self, peer: Participant, event: Mapping[str, Any]) -> None:
        joined = peer.takes_part
        peer.take(event)
        now = time.monotonic()
        if peer.takes_part and not joined and self._stepped:
            peer.join_s = now - peer.started_at
        if event["event"] == "block" and peer.attack is None:
            self._stepped.setdefault(event["round"], (now, bool(event["void"])))
            self._freed |= set(event["left"])
        elif event["event"] == "round" and event["round"] >= self._round:
            self._round, self._seats, self._present = event["round"], event["members"], event["present"]
        elif event["event"] == "banned" and peer.attack is None:
            self._banned.add(event["peer"])


@contextmanager
def _temporary_files_in(folder: Path) -> Iterator[None]:
    """Temporary files of the peers go there, to see what is left of them."""
    tempfile.gettempdir()  # what this process makes for its forkserver stays where it was
    folder.mkdir()
    before = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = before
