import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from hypothesis import given
from hypothesis import strategies as st

from btrain.errors import IdentityError
from btrain.identity import (
    InvalidPeerId,
    KeyFile,
    KeyFileBusy,
    KeyFileExists,
    KeyFileMode,
    KeyFileUnreadable,
    SigningKey,
    check_public_key,
    create_key,
    peer_id_bytes,
    peer_id_text,
    read_key,
    short_id,
    verify,
)

P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P
HOLD = """
import sys
from btrain.identity import KeyFile
held = KeyFile.open_or_create(sys.argv[1])
print(1, flush=True)
input()
"""
HOLD_AND_FORK = HOLD.replace("print", "import os\nif os.fork(): os.wait()\nprint")


def add(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    """The addition law of edwards25519 in affine coordinates (RFC 8032 section 5.1)."""
    (x1, y1), (x2, y2) = a, b
    k = D * x1 * x2 * y1 * y2
    return (
        (x1 * y2 + x2 * y1) * pow(1 + k, P - 2, P) % P,
        (y1 * y2 + x1 * x2) * pow(1 - k, P - 2, P) % P,
    )


def points_of_small_order() -> set[tuple[int, int]]:
    """All multiples of L * Q for points Q; eight of them once a Q outside the prime-order subgroup was met."""
    found: set[tuple[int, int]] = set()
    y = 2
    while len(found) < 8:
        y += 1
        square = (y * y - 1) * pow(D * y * y + 1, P - 2, P) % P
        x = pow(square, (P + 3) // 8, P)
        if x * x % P != square:
            x = x * pow(2, (P - 1) // 4, P) % P
        if x * x % P != square:
            continue
        point, multiple = (x, y), (0, 1)
        for bit in f"{L:b}":
            multiple = add(multiple, multiple)
            if bit == "1":
                multiple = add(multiple, point)
        torsion = (0, 1)
        for _ in range(8):
            found.add(torsion)
            torsion = add(torsion, multiple)
    return found


def encodings_of_small_order() -> Iterator[bytes]:
    for x, y in points_of_small_order():
        yield (y | (x & 1) << 255).to_bytes(32, "little")


def test_rfc_8032_vector() -> None:
    key = SigningKey.from_seed(bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"))
    assert key.public_key.hex() == "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    assert key.sign(b"").hex() == (
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"
    )
    assert verify(key.public_key, b"", key.sign(b""))


def test_a_signature_holds_for_its_key_and_message_only() -> None:
    key, other = SigningKey.generate(), SigningKey.generate()
    signature = key.sign(b"message")
    assert verify(key.public_key, b"message", signature)
    assert not verify(other.public_key, b"message", signature)
    assert not verify(key.public_key, b"massage", signature)
    for index in range(64):
        changed = bytearray(signature)
        changed[index] ^= 1
        assert not verify(key.public_key, b"message", bytes(changed))


def test_a_second_encoding_of_the_same_signature_is_refused() -> None:
    key = SigningKey.generate()
    signature = key.sign(b"message")
    scalar = int.from_bytes(signature[32:], "little") + L
    assert not verify(key.public_key, b"message", signature[:32] + scalar.to_bytes(32, "little"))


@given(st.binary(max_size=80), st.binary(max_size=20), st.binary(max_size=80))
def test_verify_never_raises(public_key: bytes, message: bytes, signature: bytes) -> None:
    assert not verify(public_key, message, signature)


def test_wrong_lengths_do_not_verify() -> None:
    key = SigningKey.generate()
    signature = key.sign(b"m")
    assert not verify(key.public_key[:31], b"m", signature)
    assert not verify(key.public_key + b"\0", b"m", signature)
    assert not verify(key.public_key, b"m", signature[:63])
    assert not verify(key.public_key, b"m", signature + b"\0")


def test_points_of_small_order_are_no_identities() -> None:
    encodings = set(encodings_of_small_order())
    assert len(encodings) == 8
    for public_key in encodings:
        with pytest.raises(InvalidPeerId, match="small order"):
            check_public_key(public_key)


def test_a_forged_signature_that_the_library_accepts_is_refused() -> None:
    identity_point = (1).to_bytes(32, "little")
    forged = identity_point + bytes(32)
    Ed25519PublicKey.from_public_bytes(identity_point).verify(forged, b"anything")
    assert not verify(identity_point, b"anything", forged)


@pytest.mark.parametrize("y", [P, P + 1, P + 3, 2**255 - 1])
@pytest.mark.parametrize("sign", [0, 1])
def test_non_canonical_keys_are_no_identities(y: int, sign: int) -> None:
    with pytest.raises(InvalidPeerId, match="canonical"):
        check_public_key((y | sign << 255).to_bytes(32, "little"))


def test_repr_hides_the_seed() -> None:
    key = SigningKey.generate()
    assert repr(key) == f"SigningKey({peer_id_text(key.public_key)})"


def test_seed_length() -> None:
    with pytest.raises(ValueError, match="32 bytes, not 31"):
        SigningKey.from_seed(bytes(31))


def test_peer_id_is_libp2ps() -> None:
    ed25519 = pytest.importorskip("libp2p.crypto.ed25519")
    peer = pytest.importorskip("libp2p.peer.id")
    for number in range(20):
        key = SigningKey.from_seed(bytes([number]) * 32)
        theirs = peer.ID.from_pubkey(ed25519.create_new_key_pair(key.seed).public_key)
        assert str(theirs) == peer_id_text(key.public_key)
        assert peer.ID.from_base58(peer_id_text(key.public_key)) == theirs


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32))
def test_texts_sort_as_the_keys_do(first: bytes, second: bytes) -> None:
    texts = peer_id_text(first), peer_id_text(second)
    assert (texts[0] < texts[1]) == (first < second)
    assert all(len(text) == 52 and text.startswith("12D3KooW") for text in texts)


@given(st.binary(min_size=32, max_size=32))
def test_peer_id_round_trip(seed: bytes) -> None:
    key = SigningKey.from_seed(seed)
    assert peer_id_bytes(peer_id_text(key.public_key)) == key.public_key


@given(st.text(max_size=60) | st.text(alphabet="12D3KooWabcxyz", min_size=44, max_size=44).map("12D3KooW".__add__))
def test_texts_are_peer_ids_or_refused_by_name(text: str) -> None:
    try:
        public_key = peer_id_bytes(text)
    except InvalidPeerId:
        return
    assert peer_id_text(public_key) == text


def test_what_is_no_peer_id() -> None:
    text = peer_id_text(SigningKey.generate().public_key)
    for wrong in ("", text[:-1], text + "1", text.lower(), text[:-1] + "0", text[:-1] + "é", "Qm" + text[2:]):
        with pytest.raises(InvalidPeerId):
            peer_id_bytes(wrong)
    with pytest.raises(InvalidPeerId, match="Ed25519 key"):
        peer_id_bytes("12D3KooW" + "z" * 44)
    with pytest.raises(InvalidPeerId, match="cannot be a peer"):
        peer_id_bytes(peer_id_text(bytes(32)))
    with pytest.raises(InvalidPeerId):
        peer_id_text(bytes(31))


def test_short_ids_differ() -> None:
    assert len({short_id(peer_id_text(SigningKey.from_seed(bytes([n]) * 32).public_key)) for n in range(50)}) == 50


def test_key_file_is_private_and_keeps_its_key(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "identity.key"
    with KeyFile.open_or_create(path) as first:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        key = first.key
    with KeyFile.open_or_create(path) as second:
        assert second.key.seed == key.seed
    assert sorted(file.name for file in path.parent.iterdir()) == ["identity.key", "identity.key.lock"]


def test_umask_does_not_open_the_key(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        create_key(tmp_path / "k")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "k").stat().st_mode) == 0o600


def test_busy_key_names_the_process(tmp_path: Path) -> None:
    with KeyFile.open_or_create(tmp_path / "k"), pytest.raises(KeyFileBusy, match=f"process {os.getpid()};"):
        KeyFile.open_or_create(tmp_path / "k")
    KeyFile.open_or_create(tmp_path / "k").close()


def test_one_key_under_two_names_is_one_key(tmp_path: Path) -> None:
    with KeyFile.open_or_create(tmp_path / "k"):
        (tmp_path / "link").symlink_to(tmp_path / "k")
        with pytest.raises(KeyFileBusy):
            KeyFile.open_or_create(tmp_path / "link")


def test_kill_9_releases_the_key(tmp_path: Path) -> None:
    path = tmp_path / "k"
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "1\n"
        with pytest.raises(KeyFileBusy, match=f"process {process.pid};"):
            KeyFile.open_or_create(path)
        process.send_signal(signal.SIGKILL)
        process.wait()
        with KeyFile.open_or_create(path) as reopened:
            assert reopened.key.seed == read_key(path).seed


def test_a_forked_child_does_not_keep_the_key(tmp_path: Path) -> None:
    """A child that outlives its killed parent, as a data loader's worker may for a while."""
    path = tmp_path / "k"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD_AND_FORK, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"1\n"  # written by the child
        process.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        KeyFile.open_or_create(path).close()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601])
def test_a_key_open_to_others_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "k"
    create_key(path)
    path.chmod(mode)
    with pytest.raises(KeyFileMode, match=f"{mode:04o}.*run: chmod 600 {path}$"):
        KeyFile.open_or_create(path)
    path.chmod(0o600)
    KeyFile.open_or_create(path).close()


def foreign_key() -> bytes:
    key = generate_private_key(SECP256R1())
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@pytest.mark.parametrize("content", [b"", b"garbage", b"\xff" * 100, foreign_key()])
def test_a_garbled_key_is_named_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "k"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(KeyFileUnreadable, match=f"{path}: is not an undamaged Ed25519 key"):
        KeyFile.open_or_create(path)
    assert path.read_bytes() == content


@pytest.mark.parametrize("flip", [0x01, 0x06, 0x80])
def test_no_flipped_byte_gives_another_identity(tmp_path: Path, flip: int) -> None:
    path = tmp_path / "k"
    key = create_key(path)
    whole = path.read_bytes()
    refused = 0
    for index in range(len(whole)):
        path.write_bytes(whole[:index] + bytes([whole[index] ^ flip]) + whole[index + 1 :])
        try:
            assert read_key(path).seed == key.seed
        except KeyFileUnreadable:
            refused += 1
    assert refused > 120


def test_the_file_is_what_other_tools_read_and_write(tmp_path: Path) -> None:
    path = tmp_path / "k"
    key = create_key(path)
    path.write_bytes(path.read_bytes().split(b"\n", 1)[1])
    theirs = load_pem_private_key(path.read_bytes(), password=None)
    assert isinstance(theirs, Ed25519PrivateKey)
    pkcs8 = theirs.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    assert path.read_bytes() == pkcs8
    assert read_key(path).seed == key.seed


def test_unusable_places(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "k", tmp_path / "folder"):
        with pytest.raises(KeyFileUnreadable, match=str(path)):
            KeyFile.open_or_create(path)
    with pytest.raises(KeyFileUnreadable, match="No such file"):
        read_key(tmp_path / "absent")
    KeyFile.open_or_create(tmp_path / "free").close()


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    key = create_key(tmp_path / "k")
    with pytest.raises(KeyFileExists) as raised:
        create_key(tmp_path / "k")
    assert isinstance(raised.value, IdentityError)
    assert read_key(tmp_path / "k").seed == key.seed
