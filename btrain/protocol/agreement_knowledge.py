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
        self._own: dict[type, tuple[int, bytes]] = {}  # the latest own signed messages and their attempts
        self._asked_for: set[bytes] = set()
        self._finals_wanted_by: set[PeerId | None] = set()  # None: by everybody
        self._finals_sent_to: set[PeerId | None] = set()

    @property
    def final_certificate(self) -> tuple[bytes, ...] | None:
        """Signed Finals of q members for the decision, in member order."""
        if self.state.decided is None:
            return None
        enough = self.electorate.quorum
        if all(len(senders) < enough for senders in self.state.finals.values()):
            return None
        senders = self.state.finals.get(self.rules.digest(self.state.decided), {})
        finals = tuple(envelope for _, envelope in sorted(senders.items()))
        return finals[:enough] if len(finals) >= enough else None

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

    @property
    def known_digests(self) -> set[bytes]:
        """Digests of the values whose items this member knows."""
        state = self.state
        suggested = {suggestion.digest for known in state.proposals.values() for suggestion in known}
        certain = (state.decided, None if state.highest is None else dict(state.highest.items))
        told = {digest for digest, _ in state.values.values()}
        return suggested | told | {self.rules.digest(items) for items in certain if items is not None}

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
            state.take_final(sender, payload.digest, envelope)
            if sender == self.me:
                state.final = payload.digest
            return
        if state.decided is not None:
            if not isinstance(payload, Vote) or payload.attempt > 0:
                self._want_finals(sender)
            return
        if sender == self.me:
            self._own[type(payload)] = (payload.attempt, envelope)
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
            self._adopt(payload.certificate)

    def _take_vote(self, sender: PeerId, vote: Vote, envelope: bytes) -> None:
        if self.state.in_window(vote.attempt):
            self.state.votes.setdefault(vote.attempt, {}).setdefault(sender, (vote.digest, envelope))

    # --- certificates ---

    def _threshold(self, attempt: int) -> int:
        """Votes that certify in an attempt; in attempt 0 so many that two certificates cannot exist."""
        return self.electorate.fast_quorum if attempt == 0 else self.electorate.quorum

    def _adopt(self, certificate: Certificate) -> None:
        """Keep the highest certificate."""
        if certificate.attempt > self.state.rank:
            self.state.highest = certificate
            self.out.dirty = True

    def _count_votes(self) -> None:
        """Make a certificate of enough equal votes."""
        for attempt, ballots in sorted(self.state.votes.items()):
            if attempt <= self.state.rank or len(ballots) < (enough := self._threshold(attempt)):
                continue
            digest = most((digest for digest, _ in ballots.values()), enough)
            if digest is None:
                continue
            items = self.known_value(digest)
            voters = [voter for voter in sorted(ballots) if ballots[voter][0] == digest]
            if items is None:
                self._ask_for(digest, voters)
            else:
                votes = (ballots[voter][1] for voter in voters[:enough])
                self._adopt(certificate_of(attempt, items, votes))

    # --- values and Finals ---

    def _ask_for(self, digest: bytes, holders: Iterable[PeerId]) -> None:
        if digest not in self._asked_for:
            self._asked_for.add(digest)
            self.out.emit(NeedValue(digest, tuple(holder for holder in holders if holder != self.me)))

    def _voted(self, attempt: int) -> bytes | None:
        """The digest this member voted for in an attempt."""
        ballot = self.state.votes.get(attempt, {}).get(self.me)
        return None if ballot is None else ballot[0]

    def _decided_digest(self) -> bytes | None:
        for digest, senders in self.state.finals.items():
            if len(senders) > self.electorate.faulty_max:
                return digest
        return None

    def _hand_on_finals(self) -> None:
        """Hand on the Finals of b+1 members, the own one first, by which the others know their digest.

        Once to all; once more to each that shows later that it lacks them, as it may have begun only now.
        """
        finals = self.state.finals.get(self.state.final or b"", {})
        if self.me not in finals:
            return
        mine = finals[self.me]
        others = [envelope for envelope in self.state.finals_for(self.state.final or b"") if envelope != mine]
        bundle = (mine, *others[: self.electorate.faulty_max])
        for to in sorted(self._finals_wanted_by, key=lambda peer: peer or b""):
            self.out.emit(Forward(bundle, to))
            self.out.emit(PushValue(self.state.decided or {}, to))
        self._finals_sent_to |= self._finals_wanted_by
        self._finals_wanted_by = set()

    def _want_finals(self, by: PeerId) -> None:
        """A member has shown that it lacks the Finals that decide."""
        if None not in self._finals_sent_to:
            self._finals_wanted_by = {None}
        elif by not in self._finals_sent_to:
            self._finals_wanted_by.add(by)
