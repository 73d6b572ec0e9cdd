"""Running a swarm: the bootstrap first, then the others with its address, until all honest peers are done."""

from __future__ import annotations

import math
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from btrain.errors import BtrainError, ConfigError, ContractError, IdentityError, NetworkError
from btrain.monitor import Board, Screen
from btrain.peer.options import PeerOptions
from btrain.protocol.quorum import quorum
from btrain.simulation.report import Report
from btrain.swarm.child import LOG
from btrain.swarm.outcome import Outcome
from btrain.swarm.plan import PlannedPeer, SwarmPlan
from btrain.swarm.processes import LEAVE_GRACE_S, Processes, last_words, start_server, stop_server
from btrain.swarm.report import compared, report_of, write_report

TICK_S = 0.25
RESTART_AFTER_ROUNDS = 3
INTERRUPTED = 130
ONE_SIGNAL_S = 0.5  # `timeout` and the like signal a process and its group: the same request twice
_ERRORS = {error.exit_code: error for error in (ConfigError, NetworkError, ContractError, IdentityError)}

Say = Callable[[str], None]


class SwarmFailed(BtrainError):
    """The swarm could not found its run, or no honest peer came to its end; the message names peer and reason."""


class SwarmInterrupted(SwarmFailed):
    """Ctrl-C came before there was a run to report on."""

    exit_code = INTERRUPTED


class Interrupts:
    """How often SIGINT or SIGTERM came while a swarm runs."""

    def __init__(self) -> None:
        self.count = 0
        self._taken_at = -math.inf

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count in place of what the signals do otherwise; only the main thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._take) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _take(self, number: int, frame: object) -> None:
        now = time.monotonic()
        if now - self._taken_at > ONE_SIGNAL_S:
            self.count += 1
        self._taken_at = now


@dataclass(frozen=True)
class Closing:
    """How a swarm ended: its report, the peers' names and what ended them early by peer id, and the exit code."""

    report: Report
    names: Mapping[str, str]
    errors: Mapping[str, str]
    exit_code: int


def run_swarm(plan: SwarmPlan, say: Say, *, live: bool) -> Closing:
    """Run the swarm and, if asked, the same without attackers.

    Raises SwarmFailed, and the ConfigError, NetworkError or IdentityError that kept a peer from starting.
    """
    plan.check_folder()
    start_server()
    interrupts = Interrupts()
    try:
        check_attacks(plan)
        with interrupts.counted():
            swarm = Swarm(plan, say, interrupts, live=live)
            report = swarm.run()
            if plan.baseline and not interrupts.count:
                say("once more without attackers")
                with suppress(SwarmInterrupted):  # the run itself is over
                    report = compared(report, Swarm(plan.without_attackers(), say, interrupts, live=live).run())
    finally:
        stop_server()
    write_report(plan.run_dir, report)
    names = {peer.peer_id: peer.name for peer in swarm.peers}
    errors = {o.peer.peer_id: o.error for o in swarm.outcomes.values() if o.error is not None}
    return Closing(report, names, errors, INTERRUPTED if interrupts.count else _exit_code(report, swarm))


def _exit_code(report: Report, swarm: Swarm) -> int:
    """0 if honest peers came to the end with the same parameters and nobody honest was banned."""
    honest = [outcome for outcome in swarm.outcomes.values() if not outcome.peer.byzantine]
    ended = any(o.finished is not None and o.finished["reason"] != "left" for o in honest)
    return 0 if ended and report.digests_equal and not report.false_bans else SwarmFailed.exit_code


def check_attacks(plan: SwarmPlan) -> None:
    """Raise ConfigError for an attack that is unknown, has a wrong option or begins after the run's end."""
    from btrain.adversary import first_round

    for attack in plan.attacks:
        starts = first_round(attack, plan.attack_from)
        if starts >= plan.config.rounds:
            last = plan.config.rounds - 1
            raise ConfigError(f"--attack {attack}: begins in round {starts}; the run's last is {last}")


class Swarm:
    """One run of the peers of a plan."""

    def __init__(self, plan: SwarmPlan, say: Say, interrupts: Interrupts, *, live: bool) -> None:
        self.plan = plan
        self.peers = plan.prepare()
        self.outcomes = {peer.name: Outcome(peer) for peer in self.peers}
        self.interrupts = interrupts
        self.processes = Processes(plan.config_text())
        board = Board(plan.config.rounds)
        for peer in self.peers:
            board.add(peer.peer_id, peer.name, peer.attack)
        self.screen = Screen(board, say, live=live)
        self._coalition = tuple(peer.peer_id for peer in self.peers if peer.byzantine)
        self._bootstrap: str | None = None
        self._restarts = {peer.name for peer in self.peers if peer.restarted}
        self._kill_at: dict[str, float] = {}
        self._random = random.Random(plan.seed)
        self._stopping = 0
        self._started_at = time.monotonic()

    def run(self) -> Report:
        """Run to the end. Raises SwarmFailed, SwarmInterrupted and whatever kept the run from being founded."""
        with self.screen, self.processes:
            self._start(self.peers[0])
            while not self._done():
                self._tick()
            self._leave()
        if not any(outcome.founded for outcome in self.outcomes.values()):
            raise SwarmInterrupted("stopped before the run began")
        return report_of(self.plan, list(self.outcomes.values()), time.monotonic() - self._started_at)

    # --- one turn ---

    def _tick(self) -> None:
        for name, event in self.processes.wait(TICK_S):
            self._take(self.outcomes[name], event)
        self._interrupted()
        self._restart()
        self._bury()
        self.screen.refresh()

    def _take(self, outcome: Outcome, event: Mapping[str, Any]) -> None:
        outcome.take(event)
        self.screen.feed(outcome.peer.peer_id, event)
        if event["event"] == "started" and self._bootstrap is None:
            self._bootstrap = _local_address(event["addresses"])
            for peer in self.peers[1:]:
                self._start(peer)
        if event["event"] == "round" and outcome.peer.name in self._restarts:
            self._plan_kill(outcome, event["round"])

    def _start(self, peer: PlannedPeer) -> None:
        options = PeerOptions(
            run_dir=peer.run_dir,
            identity=peer.run_dir / "identity.key",
            join=(self._bootstrap,) if self._bootstrap else (),
            adversary=peer.attack if peer.byzantine else None,
            attack_from=self.plan.attack_from,
            coalition=self._coalition if peer.byzantine else (),
        )
        self.processes.start(peer.name, options)

    # --- the harness's own misdeeds ---

    def _plan_kill(self, outcome: Outcome, round: int) -> None:
        if round < max(self.plan.attack_from, RESTART_AFTER_ROUNDS) or outcome.peer.name in self._kill_at:
            return
        rounds_s = [sum(phases) for phases in zip(*outcome.seconds.values(), strict=False)]
        typical_s = sorted(rounds_s)[len(rounds_s) // 2] if rounds_s else 0.1
        self._kill_at[outcome.peer.name] = time.monotonic() + self._random.random() * typical_s

    def _restart(self) -> None:
        for name, at in list(self._kill_at.items()):
            if name in self._restarts and time.monotonic() >= at:
                self._restarts.discard(name)
                running = self.processes.running[name]
                running.kill()
                running.process.join()
                running.close()
                self.screen.say(f"killed {name} in the middle of round {self.outcomes[name].round}; it starts again")
                self._start(self.outcomes[name].peer)

    # --- the end ---

    def _bury(self) -> None:
        """Report peers that ended before their time; the run goes on as long as it can."""
        for name, outcome in self.outcomes.items():
            running = self.processes.running
            if name not in running or not self.processes.ended(name) or outcome.error or self._over(name):
                continue
            code = running[name].exit_code
            how = f"was ended by signal {-code}" if code is not None and code < 0 else f"ended with exit code {code}"
            words = last_words(outcome.peer.run_dir / LOG)
            outcome.error = f"{how}{': ' if words else ''}{words}"
            self.screen.feed(outcome.peer.peer_id, {"event": "error", "text": outcome.error})

    def _over(self, name: str) -> bool:
        outcome = self.outcomes[name]
        return outcome.finished is not None or outcome.peer.peer_id in self._banned()

    def _banned(self) -> set[str]:
        return {banned for o in self.outcomes.values() if not o.peer.byzantine for banned in o.banned}

    def _done(self) -> bool:
        """Whether every honest peer has ended, or all were told to stop and have."""
        running = self.processes.running
        if self._stopping:
            return not self.processes.alive()
        if self._hopeless():
            return True
        for name, outcome in self.outcomes.items():
            ended = name in running and self.processes.ended(name)
            if ended and not outcome.founded and outcome.finished is None and not outcome.peer.byzantine:
                code = running[name].exit_code
                kind = _ERRORS.get(code, SwarmFailed) if code is not None else SwarmFailed
                raise kind(f"{name}: {outcome.error or 'ended before the run began'}")
        honest = [name for name, outcome in self.outcomes.items() if not outcome.peer.byzantine]
        return all(name in running and self.processes.ended(name) for name in honest)

    def _hopeless(self) -> bool:
        """Whether too few members are left to certify anything, so that the others would wait for ever."""
        members = self.screen.board.members  # known from the first round on, when all have been started
        if not members or any(outcome.finished is not None for outcome in self.outcomes.values()):
            return False
        banned = self._banned()
        gone = [o for n, o in self.outcomes.items() if self.processes.ended(n) and o.peer.peer_id not in banned]
        if members - len(gone) >= quorum(members):
            return False
        self.screen.say(f"{len(gone)} of {members} members are gone: nothing can be certified any more")
        return True

    def _interrupted(self) -> None:
        if self.interrupts.count == self._stopping:
            return
        self._stopping = self.interrupts.count
        if self._stopping == 1:
            self.screen.say("stopping: the peers leave in order; Ctrl-C once more ends them at once")
            self.processes.terminate()
        else:
            self.processes.kill()

    def _leave(self) -> None:
        """Attackers that are still there are asked to go; what does not go in time is ended."""
        self.processes.terminate()
        until = time.monotonic() + LEAVE_GRACE_S
        while self.processes.alive() and time.monotonic() < until and self.interrupts.count < 2:
            for name, event in self.processes.wait(TICK_S):
                self._take(self.outcomes[name], event)


def _local_address(addresses: list[str]) -> str:
    """The address that peers on this machine dial."""
    local = [address for address in addresses if address.startswith("/ip4/127.0.0.1/")]
    return (local or addresses)[0]
