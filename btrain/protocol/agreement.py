"""One decision among the members of a group: a pure state machine, at most b < n/2 of whose n members are faulty.

Messages, items and `now` (integer microseconds of any clock that does not jump back) go in, effects come out. The value
decided is a set of items. Messages between honest members arrive within Delta, directly or handed on.

  attempt 0     Who holds the items of all present members votes for their digest. `fast_quorum` equal votes make it
                final for a member that has not left attempt 0. No leader, one message delay.
  leaving       At its deadline, or on two proposals of one proposer, a member freezes and pushes the items it holds
                and signs Quit. It leaves on Quits of b+1 members, which it hands on, and then neither votes nor
                becomes final in that attempt or an earlier one.
  attempt a>0   Entered 2 Delta after leaving, with the lock frozen then. 2 Delta after its entry the proposer proposes
                the highest certified value, else all it holds. Votes, and 2 Delta later finality.
  decided       by Finals of b+1 members, which are handed on; Finals of q members prove it to everybody else.

Why a final value stays: its holder voted 2 Delta before, so an honest vote for another proposal of the attempt would
have shown it that proposal in time; and it had not left, so nobody enters the next attempt before its certificate has
arrived. The structure is that of Sync HotStuff (Abraham et al., 2020) with a leaderless first attempt.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from btrain.protocol.agreement_attempts import Attempts
from btrain.protocol.agreement_interface import (
    CancelTimer,
    Certified,
    Decided,
    Effect,
    Electorate,
    Entered,
    Forward,
    NeedValue,
    Persist,
    PushBodies,
    PushValue,
    Rules,
    SetTimer,
    Sign,
    Timing,
)
from btrain.protocol.agreement_messages import (
    VOID,
    Certificate,
    Final,
    ItemKey,
    Items,
    Lock,
    Payload,
    Proposal,
    Quit,
    Vote,
    item_pairs,
)
from btrain.protocol.agreement_state import State
from btrain.protocol.encoding import PeerId

__all__ = [
    "VOID", "Agreement", "CancelTimer", "Certificate", "Certified", "Decided", "Effect", "Electorate", "Entered",
    "Final", "Forward", "ItemKey", "Items", "Lock", "NeedValue", "Payload", "Persist", "Proposal", "PushBodies",
    "PushValue", "Quit", "Rules", "SetTimer", "Sign", "Timing", "Vote", "item_pairs",
]  # fmt: skip


class Agreement(Attempts):
    """One decision at one member.

    The owner verifies messages and items before it gives them in, executes the effects in order, and gives every
    message that it signs back through `receive`. Before `start` (the member does not yet hold the decision before this
    one) messages and items are only collected: give them in as they come, not after the start. After a restart:
    `restore`, everything of this decision that the member signed, `start`.
    """

    def __init__(self, me: PeerId, electorate: Electorate, timing: Timing, rules: Rules, started_us: int) -> None:
        super().__init__(me, electorate, timing, rules)
        self.started_us = started_us
        self._started = False
        self._restored = False

    # --- what the owner sees ---

    @property
    def attempt(self) -> int:
        """The attempt this member is in, or has left last."""
        return self.state.attempt

    @property
    def decided(self) -> Items | None:
        """The decision."""
        return self.state.decided

    def snapshot(self) -> bytes:
        """All that must survive a restart."""
        return msgspec.msgpack.encode(self.state)

    @classmethod
    def restore(
        cls, snapshot: bytes, me: PeerId, electorate: Electorate, timing: Timing, rules: Rules, started_us: int
    ) -> Agreement:
        """Go on after a restart where the last persisted snapshot stood; `started_us` is on the new clock."""
        engine = cls(me, electorate, timing, rules, started_us)
        engine.state = msgspec.msgpack.decode(snapshot, type=State)
        engine._restored = True
        return engine

    # --- inputs ---

    def start(self, now: int, trusted_from_us: int = 0) -> list[Effect]:
        """Begin: the member holds the decision before this one (since `started_us`).

        `trusted_from_us` is 2 Delta after this process began to listen: what others sent before has arrived by then.
        """
        return self._step(now, lambda: self._start(trusted_from_us - now))

    def hold(self, key: ItemKey, body_hash: bytes, now: int) -> list[Effect]:
        """An item has arrived and its sender is who the key says."""
        if self.state.held.get(key, body_hash) != body_hash:
            return self.equivocated(key, now)
        if key not in self.state.equivocated:
            self.state.held[key] = body_hash
        return self._step(now)

    def equivocated(self, key: ItemKey, now: int) -> list[Effect]:
        """Two bodies of an item are known, and handed on by the owner: the item counts as never sent."""
        self.state.drop_item(key)
        return self._step(now)

    def receive(self, sender: PeerId, payload: Payload, envelope: bytes, now: int) -> list[Effect]:
        """A verified message of this decision, the member's own included; `envelope` is its signed bytes.

        Raises:
            NotAMember: the sender has no seat, or proposes out of turn.
            InconsistentMessage: items out of order, or a certificate that does not fit the message.
            InvalidCertificate: a certificate that does not verify.
        """
        self._check(sender, payload)
        return self._step(now, lambda: self._take(sender, payload, envelope))

    def value(self, sender: PeerId, items: Items, now: int) -> list[Effect]:
        """The items behind a digest, asked for or pushed; they prove themselves by the digest."""
        if sender in self.electorate.seats and sender != self.me:
            self.state.values[sender] = (self.rules.digest(items), dict(items))
        return self._step(now)

    def timer(self, name: str, now: int) -> list[Effect]:
        """A timer set by SetTimer is due."""
        return self._step(now, lambda: self._ring(name))

    def recheck(self, now: int) -> list[Effect]:
        """What the rules answer may have changed."""
        return self._step(now)

    def resend(self, to: PeerId, now: int) -> list[Effect]:
        """`to` is connected again: everything of the open decision that it may lack."""
        return self._step(now, lambda: self._resend(to))

    # --- one step ---

    def _step(self, now: int, action: Callable[[], None] = lambda: None) -> list[Effect]:
        self.out.now = now
        if self._started:
            self._notice_standstill()
        action()
        if not self._started:
            return []
        self._advance()
        return self.out.take(self.snapshot() if self.out.dirty else None)

    def _ring(self, name: str) -> None:
        if not self.out.ring(name):
            return
        if name == "beat":
            self._beat()
        elif name == "trust":
            self._trusted = True
        elif name == "deadline":
            self._quit()
        elif name == "entry":
            self._enter()
        elif name == "propose":
            self._may_propose = True
        elif name == "settle":
            self._settled = True
        elif name == "hand_on":
            self._hand_on_finality()

    # --- start, restart, standstill ---

    def _start(self, distrust_us: int) -> None:
        self._started = True
        self.out.dirty = True
        if self._restored:
            self._say_again()
        if self.state.decided is not None:
            return
        self._beat()
        if self._restored:
            self._count_anew()
        elif distrust_us > 0:
            self._distrust(distrust_us)
        if self.state.attempt == 0:
            self.out.set_timer("deadline", max(0, self.started_us + self.timing.first_deadline_us - self.out.now))
        elif not self.state.left:
            self.out.set_timer("deadline", self.timing.later_deadline_us)

    def _say_again(self) -> None:
        """What a crash may have cut off between the snapshot and the sending."""
        state = self.state
        if state.left:
            self.out.emit(Forward(self._quits_from(state.attempt)))
        elif state.quit >= state.attempt:
            self.out.sign(Quit(state.quit, state.highest))
        if state.attempt > 0 and not state.left:
            self.out.sign(Lock(state.attempt, state.highest))
        if state.final is not None:
            self.out.sign(Final(state.final))
        if state.decided is not None:
            self._finals_wanted_by = {None}
            self.out.emit(Decided(state.decided))

    def _beat(self) -> None:
        self._asked_for.clear()
        self.out.set_timer("beat", self.timing.delta_us // 2)

    def _notice_standstill(self) -> None:
        """A member that was stopped (SIGSTOP, a sleeping machine) has missed Quits as a crashed one has."""
        due = self.out.due("beat")
        if due is not None and self.out.now > due + self.timing.delta_us // 2:
            self._beat()
            self._count_anew()

    def _count_anew(self) -> None:
        """Conclude nothing from silence before what others have sent in the meantime can have arrived."""
        two_delta = 2 * self.timing.delta_us
        self._distrust(two_delta)
        if self.state.left:
            self.out.set_timer("entry", two_delta)
        elif self.state.attempt > 0:
            self._settled = False
            self._may_propose = False
            self.out.set_timer("propose", two_delta)
            self.out.cancel("settle")

    def _distrust(self, duration_us: int) -> None:
        """Neither vote nor become final for a while: Quits and second proposals may be on their way."""
        self._trusted = False
        self.out.set_timer("trust", duration_us)

    # --- reconnecting ---

    def _resend(self, to: PeerId) -> None:
        state = self.state
        envelopes = [envelope for digest in state.finals for envelope in state.finals_for(digest)]
        envelopes += self._quits_from(0)
        for suggestion in state.proposals.get(state.attempt, []):
            envelopes.append(suggestion.envelope)
        envelopes += [envelope for _, (_, envelope) in sorted(state.votes.get(state.attempt, {}).items())]
        own = (envelope for attempt, envelope in self._own.values() if attempt >= state.attempt)
        envelopes += [envelope for envelope in own if envelope not in envelopes]
        if envelopes:
            self.out.emit(Forward(tuple(envelopes), to))
        value = state.decided if state.decided is not None else state.values.get(self.me, (b"", None))[1]
        if value is not None:
            self.out.emit(PushValue(value, to))
        certified = () if state.highest is None else (key for key, _ in state.highest.items)
        bodies = {*state.held, *(value or {}), *certified}
        if bodies - set(VOID):
            self.out.emit(PushBodies(tuple(sorted(bodies - set(VOID))), to))
