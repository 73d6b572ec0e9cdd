"""What the decision `contributors` says: which Commits count, who complained, and whose gradients are in the sum."""

from __future__ import annotations

from collections.abc import Iterable

from btrain.protocol.ledger import Contribution
from btrain.protocol.messages import Commit, Message, Missing


def item_key(message: Message) -> str:
    """Key of the statement among the items of `contributors`."""
    return f"{message.statement.kind}:{message.sender.hex()}"


def contribution_of(messages: Iterable[Message], ctx: bytes = b"") -> tuple[Contribution, dict[str, bytes]]:
    """Read the decided statements.

    A complaint Missing{i} of aggregator j keeps both i and j out of this round's sum: at least one of the two is faulty
    or cut off, so whatever faulty members complain of, the rest keeps its honest majority. Nobody loses a seat for it.
    """
    ordered = sorted(messages, key=item_key)
    commits = {message.sender: message for message in ordered if isinstance(message.body, Commit)}
    complaints = tuple(message for message in ordered if isinstance(message.body, Missing))
    out = {peer for m in complaints if isinstance(m.body, Missing) for peer in (m.sender, m.body.worker)}
    workers = tuple(
        peer
        for peer, message in commits.items()
        if isinstance(message.body, Commit) and message.body.leaves and peer not in out
    )
    items = {item_key(message): message.hash for message in ordered}
    return Contribution(ctx, commits, complaints, workers), items
