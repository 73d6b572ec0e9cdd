"""What the decision `contributors` says: which Commits count, who complained, and whose gradients are in the sum."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from btrain.protocol.encoding import PeerId
from btrain.protocol.ledger import Complaint, Contribution, parted
from btrain.protocol.messages import Commit, Message, Missing, Receipt

COMPLAINT_INDEX = 1  # of a Missing: the first one, 0, only asks for relays


def item_key(message: Message) -> str:
    """Key of the statement among the items of `contributors`."""
    s = message.statement
    return f"{s.kind}:{s.sender.hex()}" + (f":{s.index}" if s.kind == "receipt" else "")


def is_item(message: Message) -> bool:
    """Whether the decision is about such a statement."""
    body = message.body
    complaint = isinstance(body, Missing) and message.statement.index == COMPLAINT_INDEX
    return complaint or isinstance(body, Commit | Receipt)


def answers(receipt: Message, complaint: Message, commits: Mapping[PeerId, Message]) -> bool:
    """Whether a relay has the bytes of whose lack the complaint is, as the worker has committed to them."""
    r, m = receipt.body, complaint.body
    if not isinstance(r, Receipt) or not isinstance(m, Missing) or (r.worker, r.part) != (m.workers[0], m.part):
        return False
    commit = commits.get(r.worker)
    leaves = commit.body.leaves if commit is not None and isinstance(commit.body, Commit) else ()
    return r.part < len(leaves) and leaves[r.part] == r.leaf


def in_sum(peers: Iterable[PeerId], contribution: Contribution) -> tuple[PeerId, ...]:
    """Those whose gradient is in the sum, in member order."""
    return tuple(sorted(set(peers) & set(contribution.workers)))


def may_leave_out(without: Collection[PeerId], aggregator: PeerId, contribution: Contribution) -> bool:
    """Whether a Result may leave these out: nobody, one together with the aggregator, or all.

    One of the two is faulty or cut off, so the rest keeps its honest majority. All: the part is not updated.
    """
    others = set(without) - {aggregator}
    pair = len(others) == 1 and tuple(without) == in_sum({aggregator, *others}, contribution)
    return not without or tuple(without) == contribution.workers or pair


def leaf_of(commit: Message, part: int) -> bytes:
    """Hash of the sender's encoded `part`."""
    assert isinstance(commit.body, Commit)
    return commit.body.leaves[part]


def decision_statements(contribution: Contribution) -> list[Message]:
    """Every statement of a decided `contributors`, so that its digest can be computed again."""
    statements = [*contribution.commits.values(), *contribution.disputes]
    return sorted(statements, key=item_key)


def contribution_of(messages: Iterable[Message], ctx: bytes = b"") -> tuple[Contribution, dict[str, bytes]]:
    """Read the decided statements.

    Of an aggregator and the worker it complains of at least one is faulty or cut off, unless a relay holds the part. So
    pairs leave the sum, each member once: the rest keeps its honest majority whatever faulty members complain of.
    """
    ordered = sorted(messages, key=item_key)
    commits = {message.sender: message for message in ordered if isinstance(message.body, Commit)}
    receipts = [message for message in ordered if isinstance(message.body, Receipt)]
    missing = tuple(
        Complaint(message.sender, message.body.workers[0])
        for message in ordered
        if isinstance(message.body, Missing) and not any(answers(r, message, commits) for r in receipts)
    )
    out = parted(missing)
    workers = tuple(
        peer
        for peer, message in commits.items()
        if isinstance(message.body, Commit) and message.body.leaves and peer not in out
    )
    items = {item_key(message): message.hash for message in ordered}
    disputes = tuple(message for message in ordered if not isinstance(message.body, Commit))
    return Contribution(ctx, commits, disputes, workers, missing=missing), items
