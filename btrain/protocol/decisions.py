"""What the three decisions of a round are about: their items, when they are complete or acceptable, their digest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from btrain.protocol.agreement_messages import Items, Vote
from btrain.protocol.block_items import BlockItems
from btrain.protocol.contribution import contribution_of, is_item
from btrain.protocol.encoding import PeerId
from btrain.protocol.errors import RemoteProtocolError
from btrain.protocol.ledger import ResultEntry, items_digest
from btrain.protocol.messages import Message, Result

if TYPE_CHECKING:
    from btrain.protocol.round import Round

CONTRIBUTORS, RESULTS, BLOCK = 0, 1, 2
NAMES = ("contributors", "results", "block")


def result_key(message: Message) -> str:
    """Key of a Result: sorts by part, then by attempt, so that the first of a part is the one that counts."""
    assert isinstance(message.body, Result)
    return f"result:{message.body.part:05}:{message.statement.attempt:05}:{message.sender.hex()}"


class DecisionRules:
    """What the engine asks about the values of one decision."""

    index: int

    def __init__(self, round: Round) -> None:
        self.round = round

    @property
    def ctx(self) -> bytes:
        """Hash of the inputs of this decision."""
        return self.round.state.head

    def digest(self, items: Items) -> bytes:
        """Digest of a value."""
        return items_digest(NAMES[self.index], self.ctx, items)

    def complete(self, held: Items) -> bool:
        """Whether everything that is awaited is here."""
        raise NotImplementedError

    def acceptable(self, items: Items, attempt: int) -> bool:
        """Whether a proposal may be voted for: every body is here and checked."""
        raise NotImplementedError

    def void_allowed(self, attempt: int, held: Items) -> bool:
        """Whether the void value may be proposed and voted for in this attempt."""
        return attempt >= self.round.roster.faulty_max + 2

    def verify_vote(self, envelope: bytes) -> tuple[PeerId, Vote] | None:
        """Sender and vote of an envelope inside a certificate, None unless it is a vote of this decision."""
        try:
            message = self.round.desk.verifier.open(envelope, self.round.state.run)
        except RemoteProtocolError:
            return None
        s, body = message.statement, message.body
        if not isinstance(body, Vote) or (s.round, s.prev, s.index) != (
            self.round.round,
            self.round.state.head,
            self.index,
        ):
            return None
        if s.attempt != body.attempt or self.round.roster.seat(message.sender) is None:
            return None
        if s.attempt <= self.round.attempts_noticed:
            self.round.desk.notice(message)  # a double vote may only be seen inside a certificate
        return message.sender, body


class ContributorsRules(DecisionRules):
    """`contributors`: the Commits, the complaints of aggregators that lack a part, and receipts of relays."""

    index = CONTRIBUTORS

    def complete(self, held: Items) -> bool:
        """Every present member has committed, and this one, if it aggregates, has its parts."""
        if len(held) < len(self.round.roles.present):
            return False
        commits = sum(key.startswith("commit:") for key in held)
        return commits == len(self.round.roles.present) and self.round.holds_own_parts()

    def acceptable(self, items: Items, attempt: int) -> bool:
        """Every statement is here and stands under its own key."""
        bodies = self.round.statements.bodies_of(items)
        if bodies is None:
            return False
        return all(map(is_item, bodies)) and contribution_of(bodies)[1] == dict(items)

    def void_allowed(self, attempt: int, held: Items) -> bool:
        """Fewer than q Commits, or too many attempts."""
        commits = sum(key.startswith("commit:") for key in held)
        return commits < self.round.roster.quorum or super().void_allowed(attempt, held)


class ResultsRules(DecisionRules):
    """`results`: a Result for every part, of the decided contributors, whose bytes are here and legal."""

    index = RESULTS

    @property
    def ctx(self) -> bytes:
        """The decided contributors."""
        assert self.round.contribution is not None
        return self.round.contribution.ctx

    def complete(self, held: Items) -> bool:
        """A result of attempt 0 for every part of an owner that is not out."""
        if len(held) < self.round.roles.layout.parts:
            return False
        return {entry.part for entry in self.entries(held) or []} == set(range(self.round.roles.layout.parts))

    def acceptable(self, items: Items, attempt: int) -> bool:
        """One result for every part, each of the right aggregator, each checked."""
        entries = self.entries(items)
        return entries is not None and self.complete(items)

    def entries(self, items: Items) -> list[ResultEntry] | None:
        """The result that counts for each part, the earliest attempt; None if an item is unknown or not checked."""
        bodies = self.round.statements.bodies_of(items)
        if bodies is None:
            return None
        first: dict[int, ResultEntry] = {}
        for key, message in sorted(zip(sorted(items), bodies, strict=True), key=lambda pair: pair[0]):
            body = message.body
            if not isinstance(body, Result) or key != result_key(message) or not self.round.rightful(message):
                return None
            if not self.round.exchange.has_opened(message):
                return None
            entry = ResultEntry(body.part, message.statement.attempt, message.sender, body.hash)
            first.setdefault(body.part, entry)
        return [first[part] for part in sorted(first)]


class BlockRules(DecisionRules):
    """`block`: the links of those whose Commit counts, the Tables of the parts and disputes about them."""

    index = BLOCK

    @property
    def ctx(self) -> bytes:
        """The decided results."""
        return self.round.results_digest

    def digest(self, items: Items) -> bytes:
        """The block's hash; what makes up no block has a digest that no block has."""
        return self.round.block_digest(items)

    def complete(self, held: Items) -> bool:
        """Every committed member has opened its link, and the Tables are approved."""
        if len(held) < len(self.round.expected_links):
            return False
        links = sum(key.startswith("link:") for key in held)
        return links == len(self.round.expected_links) and self.round.checking.complete(held)

    def acceptable(self, items: Items, attempt: int) -> bool:
        """Every link belongs to a committed member and is on its chain; Tables and disputes are here and checked."""
        found = BlockItems.read(items)
        return found is not None and found.fits(self.round) and self.round.checking.acceptable(found, attempt)

    def void_allowed(self, attempt: int, held: Items) -> bool:
        """A block is decided always."""
        return False


RULES: tuple[type[DecisionRules], ...] = (ContributorsRules, ResultsRules, BlockRules)
