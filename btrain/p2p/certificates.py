"""The bulk plane's TLS identity: a self-signed certificate whose bytes the peer's Ed25519 key has signed.

The certificate is made anew for every process and never verified by name or authority: each side compares the
certificate the other presents in the handshake, byte for byte, with the one in that peer's signed record.
"""

from __future__ import annotations

import datetime as dt
import ssl
import tempfile
from collections.abc import Iterable
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from btrain.identity import SigningKey, peer_id_text, verify
from btrain.p2p.errors import PeerViolation

_DOMAIN = b"btrain/bulk-certificate/v1\0"
_PINS_MAX = 512
# Wall clocks of different machines are never compared, so the certificate is valid at any time one could show.
_ALWAYS = (dt.datetime(1970, 1, 1, tzinfo=dt.UTC), dt.datetime(9999, 12, 31, tzinfo=dt.UTC))


def sign_certificate(key: SigningKey, run_tag: bytes, certificate: bytes) -> bytes:
    """The identity's signature over its bulk certificate (DER) for one run."""
    return key.sign(_signed_bytes(run_tag, certificate))


def check_certificate(peer: bytes, run_tag: bytes, certificate: bytes, signature: bytes) -> None:
    """Raise PeerViolation unless `peer` signed `certificate` for this run."""
    if not verify(peer, _signed_bytes(run_tag, certificate), signature):
        raise PeerViolation("the bulk certificate is not signed by the peer's identity")


def _signed_bytes(run_tag: bytes, certificate: bytes) -> bytes:
    return _DOMAIN + len(run_tag).to_bytes(1, "big") + run_tag + certificate


class BulkIdentity:
    """This process's certificate and the TLS contexts that present it and ask for the other side's."""

    def __init__(self, key: SigningKey) -> None:
        private = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, peer_id_text(key.public_key))])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(private.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(_ALWAYS[0])
            .not_valid_after(_ALWAYS[1])
            .sign(private, hashes.SHA256())
        )
        self.certificate = certificate.public_bytes(Encoding.DER)
        self._pem = certificate.public_bytes(Encoding.PEM) + private.private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
        )
        self._pinned: set[bytes] = set()
        self._renew(())

    def pin(self, certificate: bytes, others: Iterable[bytes]) -> None:
        """Let `certificate` (DER) through the handshake; raises PeerViolation if it is none.

        OpenSSL cannot forget one, so the contexts are rebuilt with `others`, those still in use, when many piled up.
        """
        if certificate in self._pinned:
            return
        if len(self._pinned) >= _PINS_MAX:
            self._renew(others)
        try:
            for context in (self.server_context, self.client_context):
                context.load_verify_locations(cadata=certificate)
        except (ssl.SSLError, ValueError) as error:
            raise PeerViolation(f"the bulk certificate cannot be read: {error}") from None
        self._pinned.add(certificate)

    def _renew(self, pins: Iterable[bytes]) -> None:
        self.server_context = self._context(ssl.PROTOCOL_TLS_SERVER)
        self.server_context.num_tickets = 0  # unread tickets make the kernel reset the connection at close: a lost tail
        self.client_context = self._context(ssl.PROTOCOL_TLS_CLIENT)
        self._pinned = set(pins)
        for certificate in self._pinned:
            for context in (self.server_context, self.client_context):
                context.load_verify_locations(cadata=certificate)

    def _context(self, protocol: int) -> ssl.SSLContext:
        context = ssl.SSLContext(protocol)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN  # a pinned certificate needs no authority
        with tempfile.TemporaryDirectory() as folder:  # the ssl module reads keys from files only
            path = Path(folder, "bulk.pem")
            path.touch(mode=0o600)
            path.write_bytes(self._pem)
            context.load_cert_chain(path)
        return context
