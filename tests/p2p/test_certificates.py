"""A bulk certificate counts only with its peer's signature, for its run."""

from __future__ import annotations

import pytest

from btrain.identity import SigningKey
from btrain.p2p import certificates
from btrain.p2p.certificates import BulkIdentity, check_certificate, sign_certificate
from btrain.p2p.errors import PeerViolation

KEY, OTHER = SigningKey.from_seed(bytes(32)), SigningKey.from_seed(bytes(31) + b"1")


def test_only_the_peers_signature_for_this_run_and_certificate_passes() -> None:
    certificate = BulkIdentity(KEY).certificate
    signature = sign_certificate(KEY, b"run", certificate)
    check_certificate(KEY.public_key, b"run", certificate, signature)
    for peer, run, body, signed in (
        (OTHER.public_key, b"run", certificate, signature),
        (KEY.public_key, b"ru", b"n" + certificate, signature),
        (KEY.public_key, b"another", certificate, signature),
        (KEY.public_key, b"run", certificate[:-1], signature),
        (KEY.public_key, b"run", certificate, bytes(64)),
    ):
        with pytest.raises(PeerViolation, match="not signed"):
            check_certificate(peer, run, body, signed)


def test_each_process_has_a_certificate_of_its_own() -> None:
    assert BulkIdentity(KEY).certificate != BulkIdentity(KEY).certificate


def test_old_certificates_are_forgotten_when_many_piled_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificates, "_PINS_MAX", 2)
    identity = BulkIdentity(KEY)
    first, second, third = (BulkIdentity(OTHER).certificate for _ in range(3))
    context = identity.server_context
    identity.pin(first, [])
    identity.pin(first, [])
    identity.pin(second, [])
    assert identity.server_context is context
    identity.pin(third, [second])
    assert identity.server_context is not context
    assert {bytes(pin) for pin in identity.server_context.get_ca_certs(binary_form=True)} <= {second, third}


def test_what_is_no_certificate_cannot_be_pinned() -> None:
    with pytest.raises(PeerViolation, match="cannot be read"):
        BulkIdentity(KEY).pin(b"junk", [])
