"""The checks of one member: a few at a time, what is urgent first, every gradient recomputed once whoever asks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from torch import Tensor

from btrain.protocol.audit import Check, GradientCheck, PartCheck
from btrain.protocol.desk import Desk
from btrain.protocol.encoding import PeerId
from btrain.protocol.verdicts import Question

RUNNING_MAX = 2  # checks under way; the others wait, so that a sweep takes little memory and leaves room for training


@dataclass
class Doubt:
    """Who wants to know what came out of recomputing a gradient."""

    check: GradientCheck
    asking: list[PeerId] = field(default_factory=list)  # this member by its duty; accusers
    bereft: bool = False  # an auditor whose turn it was could not get all bytes


@dataclass
class Docket:
    """Runs checks. `concluded` is called with every one that has an outcome."""

    desk: Desk
    concluded: Callable[[Check], None]
    running: dict[str, Check] = field(default_factory=dict)
    waiting: deque[Check] = field(default_factory=deque)
    findings: dict[Question, GradientCheck] = field(default_factory=dict)
    doubts: dict[Question, Doubt] = field(default_factory=dict)  # of the checks that are not over
    _x: dict[int, bytes] = field(default_factory=dict)  # parameters for evidence, one copy a round

    def add(self, check: Check, *, urgent: bool) -> None:
        """Run a check as soon as its turn comes."""
        if urgent:
            self.waiting.appendleft(check)
        else:
            self.waiting.append(check)
        self._next()

    @property
    def is_idle(self) -> bool:
        """Whether nothing is left to check."""
        return not (self.running or self.waiting)

    def hurry(self, token: str) -> None:
        """Put a waiting check before the others."""
        check = next((check for check in self.waiting if check.token == token), None)
        if check is not None:
            self.waiting.remove(check)
            self.waiting.appendleft(check)

    # --- inputs of running checks ---

    def recomputed(self, token: str, gradient: Tensor | None, x: Tensor | None) -> None:
        """The oracle's answer."""
        check = self.running.get(token)
        if isinstance(check, GradientCheck):
            if x is not None and check.round not in self._x:
                self._x[check.round] = x.numpy().tobytes()
            self.desk.emit(*check.recomputed(gradient, self._x[check.round] if x is not None else None))
            self._after(check)

    def work_done(self, token: str, result: object) -> None:
        """The result of a check's job."""
        check = self.running.get(token)
        if isinstance(check, GradientCheck | PartCheck):
            self.desk.emit(*check.work_done(result))
            self._after(check)

    def blob(self, hash: bytes, data: bytes | None) -> None:
        """Bytes that checks wait for; None when nobody has them."""
        for check in list(self.running.values()):
            self.desk.emit(*check.blob(hash, data))
            self._after(check)

    def _after(self, check: Check) -> None:
        if check.outcome is None or self.running.pop(check.token, None) is None:
            return
        if isinstance(check, GradientCheck):
            check.gradient = None
            self.findings[check.commit.sender, check.round] = check
        self.concluded(check)
        self._next()

    def _next(self) -> None:
        while self.waiting and len(self.running) < RUNNING_MAX:
            check = self.waiting.popleft()
            self.running[check.token] = check
            self.desk.emit(*check.start())
            self._after(check)

    # --- memory ---

    def forget(self, kept: Callable[[int], bool], accused: Collection[Question]) -> None:
        """Drop the findings of rounds that are over, and the bytes of those that nobody needs as evidence."""
        self.findings = {question: check for question, check in self.findings.items() if kept(question[1])}
        for question, check in self.findings.items():
            if question not in accused:
                check.blobs, check.x = {}, b""
        needed = {round for _, round in accused} | {round for _, round in self.doubts}
        self._x = {round: x for round, x in self._x.items() if round in needed}

    def undo(self, round: int) -> None:
        """Blocks from `round` on do not stand any more: neither do the checks of what was done then; x[round] does."""
        self.running = {token: check for token, check in self.running.items() if check.round < round}
        self.waiting = deque(check for check in self.waiting if check.round < round)
        self.findings = {question: check for question, check in self.findings.items() if check.round < round}
        self.doubts = {question: doubt for question, doubt in self.doubts.items() if doubt.check.round < round}
        self._x = {at: x for at, x in self._x.items() if at <= round}
        self._next()
