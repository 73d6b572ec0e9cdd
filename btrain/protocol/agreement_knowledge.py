"""What a member of a decision learns: messages checked and taken, votes counted, certificates kept and handed on."""

from __future__ import annotations

from collections.abc import Iterable

from btrain.protocol.agreement_interface import Electorate, Forward, NeedValue, PushValue, Rules
from btrain.protocol.agreement_messages import Certificate, Final, Items, Payload, Proposal, Quit, Vote, item_pairs
from btrain.protocol.agreement_outbox import Outbox
from btrain.protocol.agreement_state import State, Suggestion, certificate_of, most, valid_certificate
from btrain.protocol.encoding import PeerId
from btrain.protocol.errors import InconsistentMessage, InvalidCertificate, NotAMember


class Knowledge:
    """The part of an agreement that draws no conclusions about attempts."""

    def __init__(self, me: PeerId, electorate: Electorate, rules: Rules) -> None:
        self.me = me
        self.electorate = electorate
        self.rules = rules
        self.state = State()
        self.out = Outbox()
        self._own: dict[type, bytes] = {}  # own signed messages of the current attempt
        self._asked_for: set[bytes] = set()
        self._votes_handed_on: set[int] = set()
        self._finals_handed_on = False

    @property
    def final_certificate(self) -> tuple[bytes, ...] | None:
        """Signed Finals of q members for the decision, in member order."""
        if self.state.decided is None:
            return None
        finals = self._finals_for(self.rules.digest(self.state.decided))
        return finals[: self.electorate.quorum] if len(finals) >= self.electorate.quorum else None

    def known_value(self, digest: bytes) -> Items | None:
        """The items behind a digest, if this member knows them: the answer to another member's NeedValue."""
        state = self.state
        for suggestions in state.proposals.values():
            for suggestion in suggestions:
                if suggestion.digest == digest:
                    return dict(suggestion.proposal.items)
        for known, items in state.values.values():
            if known == digest:
                return items
        for certain in (state.decided, None if state.highest is None else dict(state.highest.items)):
            if certain is not None and self.rules.digest(certain) == digest:
                return certain
        return None

    # --- taking messages ---

    def _check(self, sender: PeerId, payload: Payload) -> None:
        if sender not in self.electorate.seats:
            raise NotAMember(f"{type(payload).__name__} of {sender.hex()[:8]}, which holds no seat")
        if isinstance(payload, Vote | Final):
            return
        certificate = payload.certificate
        if isinstance(payload, Proposal):
            if sender != self.electorate.proposer(payload.attempt):
                raise NotAMember(f"{sender.hex()[:8]} is not the proposer of attempt {payload.attempt}")
            if payload.items != item_pairs(dict(payload.items)):
                raise InconsistentMessage("the items of a proposal are not in canonical order")
            earlier = certificate is None or certificate.attempt < payload.attempt
            if not earlier or (certificate is not None and certificate.items != payload.items):
                raise InconsistentMessage("the certificate of a proposal is not an earlier one of its value")
        if certificate is not None:
            enough = self._threshold(certificate.attempt)
            if not valid_certificate(certificate, self.electorate.seats, enough, self.rules):
                raise InvalidCertificate(f"in a {type(payload).__name__} of attempt {payload.attempt}")

    def _take(self, sender: PeerId, payload: Payload, envelope: bytes) -> None:
        state = self.state
        if isinstance(payload, Final):
            state.finals.setdefault(sender, (payload.digest, envelope))
            if sender == self.me:
                state.final = payload.digest
            return
        if state.decided is not None:
            if not isinstance(payload, Vote) or payload.attempt > 0:
                self._hand_on_finals()  # the sender goes on: it lacks them
            return
        if sender == self.me and payload.attempt == state.attempt:
            self._own[type(payload)] = envelope
        if isinstance(payload, Vote):
            self._take_vote(sender, payload, envelope)
            return
        if isinstance(payload, Quit):
            if sender not in state.quits or payload.attempt > state.quits[sender][0]:
                state.quits[sender] = (payload.attempt, envelope)
            if sender == self.me:
                state.quit = max(state.quit, payload.attempt)
        elif isinstance(payload, Proposal) and state.in_window(payload.attempt):
            known = state.proposals.setdefault(payload.attempt, [])
            if len(known) < 2 and all(suggestion.proposal != payload for suggestion in known):
                known.append(Suggestion(self.rules.digest(dict(payload.items)), payload, envelope))
        if payload.certificate is not None:
            self._adopt(payload.certificate, envelope)

    def _take_vote(self, sender: PeerId, vote: Vote, envelope: bytes) -> None:
        if self.state.in_window(vote.attempt):
            self.state.votes.setdefault(vote.attempt, {}).setdefault(sender, (vote.digest, envelope))

    # --- certificates ---

    def _threshold(self, attempt: int) -> int:
        """Votes that certify in an attempt; in attempt 0 so many that two certificates cannot exist."""
        return self.electorate.fast_quorum if attempt == 0 else self.electorate.quorum

    def _adopt(self, certificate: Certificate, carrier: bytes | None) -> None:
        """Keep the highest certificate and hand on the message that brought it: all need it before they enter."""
        state = self.state
        if state.highest is not None and certificate.attempt <= state.highest.attempt:
            return
        state.highest = certificate
        state.carrier = carrier
        state.certified = max(state.certified, certificate.attempt)
        self.out.dirty = True
        if carrier is not None:
            self.out.emit(Forward((carrier,)))

    def _count_votes(self) -> None:
        for attempt in sorted(self.state.votes):
            digest = self._certified_digest(attempt)
            if digest is None:
                continue
            if attempt > self.state.certified:
                self.state.certified = attempt
                self.out.dirty = True
            if attempt > self.state.rank:
                items = self.known_value(digest)
                if items is None:
                    ballots = self.state.votes[attempt]
                    self._ask_for(digest, (voter for voter in sorted(ballots) if ballots[voter][0] == digest))
                else:
                    self._adopt(certificate_of(attempt, items, self._ballots_for(attempt, digest)), None)
            if attempt > 0 or self.state.quits:
                self._hand_on_votes(attempt, digest)

    def _certified_digest(self, attempt: int) -> bytes | None:
        ballots = self.state.votes.get(attempt, {})
        return most((digest for digest, _ in ballots.values()), self._threshold(attempt))

    def _ballots_for(self, attempt: int, digest: bytes) -> tuple[bytes, ...]:
        ballots = self.state.votes[attempt]
        chosen = [envelope for _, (voted, envelope) in sorted(ballots.items()) if voted == digest]
        return tuple(chosen[: self._threshold(attempt)])

    def _hand_on_votes(self, attempt: int, digest: bytes) -> None:
        """Hand on a certificate's votes, once; those of attempt 0 only when somebody may enter attempt 1 without."""
        if attempt in self._votes_handed_on:
            return
        self._votes_handed_on.add(attempt)
        proposals = (s.envelope for s in self.state.proposals.get(attempt, []) if s.digest == digest)
        self.out.emit(Forward((*proposals, *self._ballots_for(attempt, digest))))
        items = self.known_value(digest)
        if attempt == 0 and items is not None:
            self.out.emit(PushValue(items))

    # --- values and Finals ---

    def _ask_for(self, digest: bytes, holders: Iterable[PeerId]) -> None:
        if digest not in self._asked_for:
            self._asked_for.add(digest)
            self.out.emit(NeedValue(digest, tuple(holder for holder in holders if holder != self.me)))

    def _voted(self, attempt: int) -> bytes | None:
        """The digest this member voted for in an attempt."""
        ballot = self.state.votes.get(attempt, {}).get(self.me)
        return None if ballot is None else ballot[0]

    def _finals_for(self, digest: bytes) -> tuple[bytes, ...]:
        return tuple(envelope for _, (final, envelope) in sorted(self.state.finals.items()) if final == digest)

    def _decided_digest(self) -> bytes | None:
        return most((digest for digest, _ in self.state.finals.values()), self.electorate.faulty_max + 1)

    def _hand_on_finals(self) -> None:
        """Hand on the Finals of b+1 members, once."""
        digest = self._decided_digest()
        if digest is not None and not self._finals_handed_on:
            self._finals_handed_on = True
            self.out.emit(Forward(self._finals_for(digest)[: self.electorate.faulty_max + 1]))
