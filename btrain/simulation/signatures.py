"""Signatures of simulated peers: real ones, or counted ones for runs in which Ed25519 would take most of the time."""

from __future__ import annotations

import hashlib
import hmac
from typing import Literal

from btrain.identity import SIGNATURE_BYTES, SigningKey
from btrain.protocol.messages import Verifier

Signatures = Literal["real", "counted"]
ENVELOPES_CACHED_MAX = 200_000


class CountedKey(SigningKey):
    """Signs with BLAKE2b keyed by its public key: bound to signer and message, but anybody could make it.

    Good for runs whose attackers forge nothing, which are all those of `btrain.adversary`.
    """

    __slots__ = ()

    def __init__(self, seed: bytes) -> None:
        self.seed = bytes(seed)
        self.public_key = hashlib.blake2b(seed, digest_size=32, person=b"btrain/counted").digest()

    def sign(self, message: bytes) -> bytes:
        """64 bytes, the same for the same message."""
        return counted_signature(self.public_key, message)


def counted_signature(public_key: bytes, message: bytes) -> bytes:
    """The keyed hash that stands for a signature."""
    return hashlib.blake2b(message, digest_size=SIGNATURE_BYTES, key=public_key).digest()


def counted_verify(public_key: bytes, message: bytes, signature: bytes) -> bool:
    """Whether these are the bytes that the key's owner would sign with."""
    return hmac.compare_digest(counted_signature(public_key, message), signature)


def simulated_keys(seed: int, count: int, signatures: Signatures = "real", *, first: int = 0) -> list[SigningKey]:
    """Keys number `first` and on of the peers of a simulated run, in member order."""
    make = SigningKey if signatures == "real" else CountedKey
    seeds = (
        hashlib.sha256(f"btrain/simulation/{seed}/{index}".encode()).digest() for index in range(first, first + count)
    )
    return sorted((make(key_seed) for key_seed in seeds), key=lambda key: key.public_key)


def simulated_verifier(signatures: Signatures) -> Verifier:
    """What all peers of a simulated run check envelopes with, each envelope once."""
    if signatures == "real":
        return Verifier(ENVELOPES_CACHED_MAX)
    return Verifier(ENVELOPES_CACHED_MAX, check=counted_verify)
