"""What a member holds of the open rounds, in three bytes a statement: others send it what it lacks and nothing else.

A statement goes by a piece of its hash, each time by another piece: two that share one, by chance or by somebody's
design, are told apart the next time. Who claims to hold what it does not harms itself; who claims to hold nothing is
told everything, a few times in Delta.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import msgspec

from btrain.protocol.encoding import Record

ID_BYTES = 3
OFFSET_MAX = 32 - ID_BYTES
STATEMENTS_MAX = 16_384  # what is beyond is told again


class Holdings(Record, frozen=True):
    """The bytes from `offset` on of the hashes of all that is held, joined in rising order."""

    offset: Annotated[int, msgspec.Meta(ge=0, le=OFFSET_MAX)]
    ids: Annotated[bytes, msgspec.Meta(max_length=STATEMENTS_MAX * ID_BYTES)]

    @classmethod
    def of(cls, hashes: Iterable[bytes], count: int) -> Holdings:
        """The `count`-th summary that this member makes."""
        offset = count % (OFFSET_MAX + 1)
        ids = sorted({hash[offset : offset + ID_BYTES] for hash in hashes})
        return cls(offset, b"".join(ids[:STATEMENTS_MAX]))

    def lacking(self, hashes: Iterable[bytes]) -> set[bytes]:
        """Those of the hashes that are not in the summary."""
        held = {self.ids[at : at + ID_BYTES] for at in range(0, len(self.ids), ID_BYTES)}
        return {hash for hash in hashes if hash[self.offset : self.offset + ID_BYTES] not in held}


NOTHING = Holdings(0, b"")
