"""Addresses: every legal text round-trips, every other is refused by name."""

from __future__ import annotations

import contextlib
import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from btrain.identity import SigningKey, peer_id_text
from btrain.p2p.addresses import Address, interface_hosts, parse_address, parse_peer_address, reachable_addresses
from btrain.p2p.errors import MalformedAddress

PEER = SigningKey.from_seed(bytes(32)).public_key
ID = peer_id_text(PEER)

hosts = st.one_of(
    st.tuples(st.just("ip4"), st.ip_addresses(v=4).map(str)),
    st.tuples(st.just("ip6"), st.ip_addresses(v=6).map(str)),
    st.tuples(st.sampled_from(["dns", "dns4", "dns6"]), st.from_regex(r"[a-z0-9.-]{1,30}", fullmatch=True)),
)


@given(hosts, st.integers(0, 65535), st.sampled_from([None, PEER]))
def test_an_address_survives_its_text(host: tuple[str, str], port: int, peer: bytes | None) -> None:
    address = Address(host[0], host[1], port, peer)
    assert parse_address(str(address)) == address


@given(st.text(max_size=80))
def test_any_text_is_an_address_or_refused(text: str) -> None:
    with contextlib.suppress(MalformedAddress):
        assert str(parse_address(text)).startswith("/")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "expected /ip4/HOST/tcp/PORT/p2p/PEER"),
        ("127.0.0.1:4001", "expected /ip4"),
        ("/ip4/127.0.0.1/udp/4001", "expected /ip4"),
        ("/ip4/127.0.0.1/tcp/4001/ws", "expected /ip4"),
        ("/ip4/127.0.0.1/tcp/4001/ipfs/x", "expected /ip4"),
        ("/ip4/127.0.0.1/tcp/4001/p2p/" + ID + "/x", "expected /ip4"),
        ("/ip4/localhost/tcp/4001", "no ip4 host"),
        ("/ip4/::1/tcp/4001", "no ip4 host"),
        ("/ip6/127.0.0.1/tcp/4001", "no ip6 host"),
        ("/onion/x/tcp/4001", "expected ip4, ip6 or dns"),
        ("/dns//tcp/4001", "no host name"),
        ("/dns4/a b/tcp/4001", "no host name"),
        ("/ip4/127.0.0.1/tcp/65536", "no port"),
        ("/ip4/127.0.0.1/tcp/-1", "no port"),
        ("/ip4/127.0.0.1/tcp/\u0663", "no port"),
        ("/ip4/127.0.0.1/tcp/", "no port"),
        ("/ip4/127.0.0.1/tcp/4001/p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N", "no peer id"),
        ("/ip4/127.0.0.1/tcp/4001/p2p/" + ID[:-1], "no peer id"),
        ("/dns/" + "a" * 500 + "/tcp/1", "at most"),
    ],
)
def test_the_refusal_says_what_is_wrong(text: str, why: str) -> None:
    with pytest.raises(MalformedAddress, match=why):
        parse_address(text)


def test_an_address_to_dial_names_its_peer_and_a_port() -> None:
    assert parse_peer_address(f"/ip4/127.0.0.1/tcp/1/p2p/{ID}").peer == PEER
    with pytest.raises(MalformedAddress, match="who listens"):
        parse_peer_address("/ip4/127.0.0.1/tcp/1")
    with pytest.raises(MalformedAddress, match="no port that can be reached"):
        parse_peer_address(f"/ip4/127.0.0.1/tcp/0/p2p/{ID}")


def test_a_wildcard_is_reached_at_every_interface_but_loopback() -> None:
    bound = Address("ip4", "0.0.0.0", 4001, PEER)
    found = reachable_addresses(bound, ["127.0.0.1", "192.0.2.3", "198.51.100.4"])
    assert [address.host for address in found] == ["192.0.2.3", "198.51.100.4"]
    assert {address.port for address in found} == {4001}
    assert [address.host for address in reachable_addresses(bound, ["127.0.0.1"])] == ["127.0.0.1"]
    assert [address.host for address in reachable_addresses(Address("ip6", "::", 1), [])] == ["::1"]
    exact = Address("ip4", "192.0.2.3", 4001)
    assert reachable_addresses(exact, ["198.51.100.4"]) == [exact]


def test_this_machine_has_a_loopback_interface() -> None:
    assert any(ipaddress.IPv4Address(host).is_loopback for host in interface_hosts())
