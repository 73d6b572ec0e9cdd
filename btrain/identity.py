"""Who a peer is: an Ed25519 key, its libp2p-compatible peer id, and the file that keeps the key for one process.

A peer's identity is its 32-byte public key; on screens, in files and in addresses it is written as the libp2p peer id
"12D3KooW...", which is base58 of the identity multihash of the key. All of these texts have one length and base58's
alphabet ascends, so members sorted by raw key and sorted by text stand in the same order.
"""

from __future__ import annotations

import binascii
import errno
import fcntl
import os
import re
import stat
import weakref
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from btrain.errors import ConfigError, IdentityError

PUBLIC_KEY_BYTES = 32
SEED_BYTES = 32
SIGNATURE_BYTES = 64
PEER_ID_CHARACTERS = 52

_KEY_FILE_BYTES_MAX = 4096
# An Ed25519 key in PKCS #8 (RFC 8410, section 7) is this prefix and the seed, one line of base64. Read by hand,
# since a damaged key makes general parsers take it for another algorithm and fail in ways they do not document.
_PKCS8_ED25519 = bytes.fromhex("302e020100300506032b657004220420")
_PEM = re.compile(
    rb"(?:btrain peer (?P<peer>[^\n]*)\n)?-----BEGIN PRIVATE KEY-----\n(?P<base64>[A-Za-z0-9+/]{64})\n"
    rb"-----END PRIVATE KEY-----\n?"
)
_FIELD_PRIME = 2**255 - 19
_IDENTITY_MULTIHASH = bytes.fromhex("002408011220")
_PEER_ID_BYTES = len(_IDENTITY_MULTIHASH) + PUBLIC_KEY_BYTES
_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_BASE58_DIGIT = {character: digit for digit, character in enumerate(_BASE58)}
_ORDER_8_Y = 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
# The y coordinates of the eight points of small order (1, 2, 4, 8; those of order 4 and 8 with both signs of x).
# Under such a key one signature fits many messages, so it proves nothing about who signed what.
_SMALL_ORDER_YS = frozenset({0, 1, _FIELD_PRIME - 1, _ORDER_8_Y, _FIELD_PRIME - _ORDER_8_Y})


class InvalidPeerId(ConfigError):
    """A text is no peer id, or bytes are no public key that may be a peer's identity; the message says why."""


class KeyFileBusy(IdentityError):
    """Another live process holds the key file; the message names the file and the process id."""


class KeyFileUnreadable(IdentityError):
    """A key file cannot be opened, written or understood; the message names it and what to do."""


class KeyFileMode(IdentityError):
    """A key file is open to the group or to everybody; the message gives the command that closes it."""


class KeyFileExists(IdentityError):
    """A new key was to be written over an existing file."""


class SigningKey:
    """An Ed25519 private key (RFC 8032); its repr shows the peer id only."""

    __slots__ = ("_private", "public_key", "seed")

    def __init__(self, seed: bytes) -> None:
        if len(seed) != SEED_BYTES:
            raise ValueError(f"an Ed25519 seed has {SEED_BYTES} bytes, not {len(seed)}")
        self.seed = bytes(seed)
        self._private = Ed25519PrivateKey.from_private_bytes(self.seed)
        self.public_key: bytes = self._private.public_key().public_bytes_raw()

    @classmethod
    def generate(cls) -> SigningKey:
        """A new key from the operating system's generator."""
        return cls(os.urandom(SEED_BYTES))

    @classmethod
    def from_seed(cls, seed: bytes) -> SigningKey:
        """The key of 32 secret bytes; raises ValueError for another length."""
        return cls(seed)

    def sign(self, message: bytes) -> bytes:
        """The 64-byte signature; deterministic, so that one message always gets the same bytes."""
        return self._private.sign(message)

    def __repr__(self) -> str:
        return f"SigningKey({peer_id_text(self.public_key)})"


def check_public_key(public_key: bytes) -> None:
    """Raise InvalidPeerId unless the bytes may be an identity: 32 of them, canonical, not of small order.

    One point must have one encoding (y below the field's prime, RFC 8032 section 5.1.3), or one key would be two peers.
    """
    if len(public_key) != PUBLIC_KEY_BYTES:
        raise InvalidPeerId(f"a public key has {PUBLIC_KEY_BYTES} bytes, not {len(public_key)}")
    y = int.from_bytes(public_key, "little") & (2**255 - 1)
    if y >= _FIELD_PRIME:
        raise InvalidPeerId("the public key is not canonically encoded")
    if y in _SMALL_ORDER_YS:
        raise InvalidPeerId("the public key is a point of small order, under which signatures prove nothing")


def verify(public_key: bytes, message: bytes, signature: bytes) -> bool:
    """Whether the signature is the key's over the message; False, never an exception, for malformed keys too."""
    if len(signature) != SIGNATURE_BYTES:
        return False
    try:
        check_public_key(public_key)
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidPeerId, InvalidSignature, ValueError):
        return False
    return True


def peer_id_text(public_key: bytes) -> str:
    """The libp2p peer id of a 32-byte public key, 52 characters beginning with 12D3KooW."""
    if len(public_key) != PUBLIC_KEY_BYTES:
        raise InvalidPeerId(f"a public key has {PUBLIC_KEY_BYTES} bytes, not {len(public_key)}")
    number = int.from_bytes(_IDENTITY_MULTIHASH + public_key, "big")
    digits: list[str] = []
    while number:
        number, digit = divmod(number, 58)
        digits.append(_BASE58[digit])
    digits.append(_BASE58[0])  # base58 writes each leading zero byte, here the multihash code 0x00, as one "1"
    return "".join(reversed(digits))


def peer_id_bytes(text: str) -> bytes:
    """The 32-byte public key in a peer id's text; raises InvalidPeerId for anything but an Ed25519 identity."""
    if len(text) != PEER_ID_CHARACTERS or not text.startswith("12D3KooW"):
        raise InvalidPeerId(
            f"{text[:64]!r} is no peer id: expected {PEER_ID_CHARACTERS} characters beginning with 12D3KooW"
        )
    number = 0
    for character in text:
        digit = _BASE58_DIGIT.get(character)
        if digit is None:
            raise InvalidPeerId(f"{text!r} is no peer id: {character!r} is not in base58's alphabet")
        number = number * 58 + digit
    decoded = number.to_bytes(_PEER_ID_BYTES + 1, "big")[1:]
    if not decoded.startswith(_IDENTITY_MULTIHASH):
        raise InvalidPeerId(f"{text!r} is no peer id of an Ed25519 key")
    public_key = decoded[len(_IDENTITY_MULTIHASH) :]
    try:
        check_public_key(public_key)
    except InvalidPeerId as error:
        raise InvalidPeerId(f"{text} cannot be a peer: {error}") from None
    return public_key


def short_id(text: str) -> str:
    """Eight characters for screens and file names: the last ones, since all peer ids begin alike."""
    return text[-8:]


class ProcessLock:
    """An exclusive lock on a file, held until `close` or the end of this process however it ends, `kill -9` included.

    The holder's process id stands in the file. Children forked while it is held give their copy up at once, so that
    a data loader's worker that outlives its killed parent does not keep the lock.
    """

    _held: ClassVar[weakref.WeakSet[ProcessLock]] = weakref.WeakSet()

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor
        ProcessLock._held.add(self)

    @classmethod
    def acquire(cls, path: Path) -> ProcessLock:
        """Lock `path`, created if absent; raises LockBusy with the holder's pid, OSError where it cannot be opened."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).strip()
            os.close(descriptor)
            raise LockBusy(int(holder) if holder.isdigit() else None) from None
        except OSError:
            os.close(descriptor)
            raise
        return cls(descriptor)

    def close(self) -> None:
        """Release the lock; more than once is harmless. The file stays: removing it would race with the next holder."""
        if self._descriptor is not None:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)  # for copies in children too, forked by whatever means
            self._give_up()

    def _give_up(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        ProcessLock._held.discard(self)
        if descriptor is not None:
            os.close(descriptor)

    @classmethod
    def _drop_in_child(cls) -> None:
        for lock in list(cls._held):
            lock._give_up()


os.register_at_fork(after_in_child=ProcessLock._drop_in_child)


class LockBusy(Exception):
    """A lock is held by the live process `pid` (None in the instant before it has written its number)."""

    def __init__(self, pid: int | None) -> None:
        super().__init__(f"held by {self.describe(pid)}")
        self.pid = pid

    @staticmethod
    def describe(pid: int | None) -> str:
        return "another process" if pid is None else f"process {pid}"


class KeyFile:
    """A signing key and the lock on its file; a context manager that releases the lock.

    The file is PEM (PKCS #8, unencrypted), mode 0600, below a line with the peer id, which a damaged key does not fit.
    The lock is a file beside it, `<name>.lock`.
    """

    def __init__(self, path: Path, key: SigningKey, lock: ProcessLock) -> None:
        self.path = path
        self.key = key
        self._lock = lock

    @classmethod
    def open_or_create(cls, path: str | os.PathLike[str]) -> KeyFile:
        """Lock and read the key file, or make a new key; raises KeyFileBusy, KeyFileMode, KeyFileUnreadable."""
        path = Path(os.path.realpath(path))
        lock_path = path.with_name(path.name + ".lock")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = ProcessLock.acquire(lock_path)
        except LockBusy as busy:
            raise KeyFileBusy(
                f"{path}: the identity is in use by {LockBusy.describe(busy.pid)}; stop it, or give this peer "
                "another identity (two peers with one key would be banned for signing twice)"
            ) from None
        except OSError as error:
            raise KeyFileUnreadable(f"{lock_path}: cannot be locked: {os.strerror(error.errno or 0)}") from error
        try:
            if not path.exists():
                _write_key(path, SigningKey.generate())
            return cls(path, read_key(path), lock)
        except BaseException:
            lock.close()
            raise

    def close(self) -> None:
        """Release the file for other processes; more than once is harmless."""
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def create_key(path: str | os.PathLike[str]) -> SigningKey:
    """Write a new key to a new file of mode 0600; raises KeyFileExists, KeyFileUnreadable."""
    path = Path(path)
    if os.path.lexists(path):
        raise KeyFileExists(f"{path}: exists already; choose another name, a key is never overwritten")
    key = SigningKey.generate()
    _write_key(path, key)
    return key


def read_key(path: str | os.PathLike[str]) -> SigningKey:
    """The key in a file, without its lock (to show an id, never to sign); raises KeyFileMode, KeyFileUnreadable."""
    path = Path(path)
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise KeyFileUnreadable(f"{path}: is no regular file; name a key file or a path where to make one")
            pem = file.read(_KEY_FILE_BYTES_MAX)
    except OSError as error:
        raise KeyFileUnreadable(f"{path}: cannot be read: {os.strerror(error.errno or 0)}") from error
    if mode & 0o077:
        raise KeyFileMode(f"{path}: others may read this key (mode {stat.S_IMODE(mode):04o}); run: chmod 600 {path}")
    found = _PEM.fullmatch(pem)
    der = binascii.a2b_base64(found["base64"]) if found else b""
    if found is None or len(der) != len(_PKCS8_ED25519) + SEED_BYTES or not der.startswith(_PKCS8_ED25519):
        raise KeyFileUnreadable(_garbled(path))
    key = SigningKey(der[len(_PKCS8_ED25519) :])
    if found["peer"] not in {None, peer_id_text(key.public_key).encode()}:
        raise KeyFileUnreadable(_garbled(path))
    return key


def _garbled(path: Path) -> str:
    return (
        f"{path}: is not an undamaged Ed25519 key in PEM form; restore it from a copy, or move it away to start as a "
        "new peer (the old identity's seat and standing stay with the old key)"
    )


def _write_key(path: Path, key: SigningKey) -> None:
    """Make a key file that is either whole or absent: link(2) refuses an existing name, as O_EXCL does."""
    pem = b"btrain peer %b\n-----BEGIN PRIVATE KEY-----\n%b-----END PRIVATE KEY-----\n" % (
        peer_id_text(key.public_key).encode(),
        binascii.b2a_base64(_PKCS8_ED25519 + key.seed),
    )
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    try:
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with open(descriptor, "wb") as file:
                file.write(pem)
                file.flush()
                os.fsync(file.fileno())
            os.link(unfinished, path)
        finally:
            os.unlink(unfinished)
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        if error.errno == errno.EEXIST:
            raise KeyFileExists(f"{path}: exists already; choose another name, a key is never overwritten") from None
        raise KeyFileUnreadable(f"{path}: cannot be written: {os.strerror(error.errno or 0)}") from error
