"""The rules of an agreement: when a member leaves, enters, proposes, votes, is final and has decided.

Every conclusion is a method that looks at the state and does what has become due; each closes a hole through which a
schedule of messages forks or hangs the group, and has a test that shows the hole without it.
"""

from __future__ import annotations

from btrain.protocol.agreement_interface import (
    Certified,
    Decided,
    Electorate,
    Entered,
    Forward,
    PushBodies,
    Rules,
    Timing,
)
from btrain.protocol.agreement_knowledge import Knowledge
from btrain.protocol.agreement_messages import VOID, Final, Items, Lock, Proposal, Quit, Vote, item_pairs
from btrain.protocol.agreement_state import NONE, Suggestion
from btrain.protocol.encoding import PeerId


class Attempts(Knowledge):
    """The part of an agreement that draws conclusions."""

    def __init__(self, me: PeerId, electorate: Electorate, timing: Timing, rules: Rules) -> None:
        super().__init__(me, electorate, rules)
        self.timing = timing
        self._trusted = True  # what others sent has had time to arrive since the start, a restart or a standstill
        self._settled = False  # 2 Delta have passed since the own vote of this attempt
        self._may_propose = False  # 2 Delta have passed since the entry
        self._conflicts_handed_on: set[int] = set()
        self._certified = False

    def _advance(self) -> None:
        """Draw every conclusion. Decisions and Quits come first: nothing is final for who has reason to leave."""
        if self.state.decided is None:
            self._decide()
        if self.state.decided is None:
            self._leave()
            self._count_votes()
            if not self._undisturbed() or self.state.proposals:
                self._hand_on_certificate()
                self._answer_conflicts()
            self._skip_attempt_0()
            if self.state.attempt > 0:
                self._propose()
            self._vote()
            if self.state.attempt > 0:
                self._settle()
            self._finalise()
            self._decide()
        if self._finals_wanted_by:
            self._hand_on_finals()
        if not self._certified and self.state.decided is not None:
            self._certify()

    def _certify(self) -> None:
        """Show the owner q Finals, once."""
        certificate = self.final_certificate
        if certificate is not None:
            self._certified = True
            self.out.emit(Certified(certificate))

    # --- leaving and entering ---

    def _quit(self) -> None:
        """Wish to leave: freeze and push the items, tell everybody the highest certificate."""
        state = self.state
        if state.left or state.quit >= state.attempt:
            return
        state.quit = state.attempt
        self._freeze()
        self.out.sign(Quit(state.attempt, state.highest))

    def _freeze(self) -> None:
        """From now on no value without a certificate may lack what is held now; others are given it to include it."""
        self.state.freeze()
        self.out.dirty = True
        self._push_bodies(self.state.held)

    def _push_bodies(self, items: Items) -> None:
        fresh = self.out.unpushed(set(items) - set(VOID))
        if fresh:
            self.out.emit(PushBodies(fresh))

    def _skip_attempt_0(self) -> None:
        """Where attempt 0 cannot succeed, nobody waits for its deadline once all messages are there."""
        if self.state.attempt == 0 and not self.electorate.leaderless and self.rules.complete(self.state.held):
            self._quit()

    def _quits_from(self, attempt: int) -> tuple[bytes, ...]:
        return tuple(envelope for _, (latest, envelope) in sorted(self.state.quits.items()) if latest >= attempt)

    def _attempt_to_leave(self) -> int:
        """The latest attempt that b+1 members, so one honest at least, wish to leave; -1 if there is none."""
        faulty_max, quits = self.electorate.faulty_max, self.state.quits
        if len(quits) <= faulty_max:
            return -1
        return sorted((attempt for attempt, _ in quits.values()), reverse=True)[faulty_max]

    def _leave(self) -> None:
        state = self.state
        reached = self._attempt_to_leave()
        if reached < state.attempt or (reached == state.attempt and state.left):
            return
        self._push_bodies(state.held)
        state.attempt = reached
        state.left = True
        self.out.dirty = True
        self.out.emit(Forward(self._quits_from(reached)))
        self.out.cancel("deadline", "propose", "settle")
        self.out.set_timer("entry", 2 * self.timing.delta_us)

    def _enter(self) -> None:
        """Enter the next attempt, 2 Delta after leaving: every certificate that made a value final has arrived.

        Who left without having asked for it freezes now: it may be back from a crash, or early, and was pushed what
        those who asked have frozen.
        """
        state = self.state
        if state.quit < state.attempt:
            self._freeze()
        state.attempt += 1
        state.left = False
        state.lock = state.rank
        state.prune()
        self._settled = False
        self._may_propose = False
        self.out.dirty = True
        self.out.emit(Entered(state.attempt))
        self.out.sign(Lock(state.attempt, state.highest))
        self.out.set_timer("deadline", self.timing.later_deadline_us)
        self.out.set_timer("propose", 2 * self.timing.delta_us)

    def _hand_on_certificate(self) -> None:
        """Tell everybody a certificate of the current attempt before it makes anything final.

        In attempt 0 only when somebody wishes to leave it: who enters attempt 1 has handed on Quits 2 Delta before.
        Where nobody does, Finals decide, and the bytes are spared.
        """
        if self.state.attempt > 0 or self.state.quits:
            self._tell_certificate()

    def _tell_certificate(self) -> None:
        """In the own Lock of the next attempt: a certificate of the current one is the highest that it can name.

        Single votes would not count where a double voter's other vote was first, nor would a liar's message that
        carries the certificate where two others of his were known for its slot.
        """
        state = self.state
        if state.rank == state.attempt:
            self.out.sign(Lock(state.attempt + 1, state.highest))

    def _answer_conflicts(self) -> None:
        """Two proposals of one proposer: everybody shall see both, and the attempt is given up."""
        state = self.state
        for attempt, suggestions in sorted(state.proposals.items()):
            if len(suggestions) < 2 or attempt > state.attempt + 1:  # others may be one attempt ahead
                continue
            if attempt not in self._conflicts_handed_on:
                self._conflicts_handed_on.add(attempt)
                self.out.emit(Forward(tuple(suggestion.envelope for suggestion in suggestions)))
            if attempt == state.attempt:
                self._quit()

    # --- proposing, voting, finality ---

    def _propose(self) -> None:
        state = self.state
        if (
            not self._may_propose
            or state.left
            or self.electorate.proposer(state.attempt) != self.me
            or self.out.gave_out(Proposal, state.attempt)
        ):
            return
        items: Items = state.held
        if state.highest is not None:
            items = dict(state.highest.items)
        elif self.rules.void_allowed(state.attempt, state.held):
            items = VOID
        elif not self.rules.acceptable(state.held, state.attempt):
            return
        self._push_bodies(items)
        self.out.sign(Proposal(state.attempt, item_pairs(items), state.highest))

    def _vote(self) -> None:
        state = self.state
        attempt = state.attempt
        if state.left or not self._trusted or self.out.gave_out(Vote, attempt) or self._voted(attempt) is not None:
            return
        if attempt == 0:
            if self.electorate.leaderless and self.rules.complete(state.held):
                digest = self.rules.digest(state.held)
                state.values[self.me] = (digest, dict(state.held))
                self.out.dirty = True  # who votes can name the items after a crash: votes without them hang the others
                self.out.sign(Vote(0, digest))
            return
        suggestion = self._only_suggestion()
        if suggestion is not None and self._supports(suggestion.proposal):
            self.out.emit(Forward((suggestion.envelope,)))
            self._push_bodies(dict(suggestion.proposal.items))
            self.out.dirty = True
            self.out.sign(Vote(attempt, suggestion.digest))

    def _only_suggestion(self) -> Suggestion | None:
        suggestions = self.state.proposals.get(self.state.attempt, [])
        return suggestions[0] if len(suggestions) == 1 else None

    def _supports(self, proposal: Proposal) -> bool:
        """Whether this member may vote for a proposal of its attempt."""
        state = self.state
        items = dict(proposal.items)
        rank = NONE if proposal.certificate is None else proposal.certificate.attempt
        if rank < state.lock:
            return False
        if items == VOID:
            return rank > NONE or self.rules.void_allowed(state.attempt, state.held)
        if rank == NONE and any(items.get(key) != body_hash for key, body_hash in state.frozen.items()):
            return False
        return self.rules.acceptable(items, state.attempt)

    def _settle(self) -> None:
        waiting = self._settled or self.out.due("settle") is not None
        if not self.state.left and not waiting and self._voted(self.state.attempt) is not None:
            self.out.set_timer("settle", 2 * self.timing.delta_us)

    def _finalise(self) -> None:
        """Final: the attempt's certificate is held, it is not left, and after attempt 0 nothing else was proposed."""
        state = self.state
        highest = state.highest
        if state.final is not None or state.left or not self._trusted or highest is None:
            return
        if highest.attempt != state.attempt:
            return
        digest = self.rules.digest(dict(highest.items))
        if state.attempt > 0:
            suggestion = self._only_suggestion()
            if not self._settled or suggestion is None or not suggestion.digest == digest == self._voted(state.attempt):
                return
        state.final = digest
        state.values[self.me] = (digest, dict(highest.items))
        self.out.dirty = True
        self.out.sign(Final(digest))
        if self._undisturbed():
            self.out.set_timer("hand_on", self.timing.delta_us // 2)

    # --- decision ---

    def _decide(self) -> None:
        state = self.state
        digest = self._decided_digest()
        if digest is None:
            return
        items = self.known_value(digest)
        if items is None:
            self._ask_for(digest, sorted(state.finals[digest]))
            return
        state.decided = dict(items)
        state.final = state.final or digest
        self.out.dirty = True
        self.out.cancel()
        self.out.sign(Final(digest))
        if self._undisturbed():
            self.out.set_timer("hand_on", self.timing.delta_us // 2)
        else:
            self._finals_wanted_by = {None}
        self.out.emit(Decided(state.decided))

    def _undisturbed(self) -> bool:
        """Attempt 0, and nobody wishes to leave it: most likely all become final by themselves."""
        return self.state.attempt == 0 and not self.state.left and not self.state.quits

    def _hand_on_finality(self) -> None:
        """Spare the bytes if b+1 honest Finals are on their way to everybody; else hand on what makes it final."""
        state = self.state
        senders = set(state.finals.get(state.final or b"", {}))
        if len(senders) > 2 * self.electorate.faulty_max or senders >= self.electorate.present:
            return
        if state.decided is not None:
            self._finals_wanted_by = {None}
        else:
            self._tell_certificate()
