"""Addresses: the multiaddr subset /ip4|ip6|dns|dns4|dns6/HOST/tcp/PORT[/p2p/PEER], without any library."""

from __future__ import annotations

import fcntl
import ipaddress
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from btrain.errors import BtrainError
from btrain.identity import peer_id_bytes, peer_id_text
from btrain.p2p.errors import MalformedAddress

ADDRESS_CHARACTERS_MAX = 400
_SIOCGIFADDR = 0x8915  # Linux, ioctl_list(2): the IPv4 address of one interface
_FORM = "/ip4/HOST/tcp/PORT/p2p/PEER"


@dataclass(frozen=True, slots=True)
class Address:
    """Where a peer listens and who it is; `peer` is None in an address to listen on."""

    kind: str
    host: str
    port: int
    peer: bytes | None = None

    def __str__(self) -> str:
        text = f"/{self.kind}/{self.host}/tcp/{self.port}"
        return text if self.peer is None else f"{text}/p2p/{peer_id_text(self.peer)}"


def parse_address(text: str) -> Address:
    """Read an address, with or without its peer; raises MalformedAddress."""
    if len(text) > ADDRESS_CHARACTERS_MAX:
        raise MalformedAddress(f"an address is a text of at most {ADDRESS_CHARACTERS_MAX} characters")
    words = text.split("/")
    if len(words) not in (5, 7) or words[0] or words[3] != "tcp" or (len(words) == 7 and words[5] != "p2p"):
        raise MalformedAddress(f"{text!r} is no address: expected {_FORM}")
    kind, host, port = words[1], words[2], words[4]
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65535):
        raise MalformedAddress(f"{text!r} is no address: {port!r} is no port (0 to 65535)")
    peer = None
    if len(words) == 7:
        try:
            peer = peer_id_bytes(words[6])
        except BtrainError as error:
            raise MalformedAddress(f"{text!r} is no address: {words[6]!r} is no peer id ({error})") from None
    return Address(kind, _checked_host(text, kind, host), int(port), peer)


def parse_peer_address(text: str) -> Address:
    """Read an address that names its peer and a port other than 0; raises MalformedAddress."""
    address = parse_address(text)
    if address.peer is None:
        raise MalformedAddress(f"{text!r} does not say who listens there: expected {_FORM}")
    if address.port == 0:
        raise MalformedAddress(f"{text!r} names no port that can be reached")
    return address


def _checked_host(text: str, kind: str, host: str) -> str:
    if kind in ("dns", "dns4", "dns6"):
        if not host or not host.isascii() or not all(c.isalnum() or c in "-._" for c in host):
            raise MalformedAddress(f"{text!r} is no address: {host!r} is no host name")
        return host
    try:
        if kind == "ip4":
            return str(ipaddress.IPv4Address(host))
        if kind == "ip6":
            return str(ipaddress.IPv6Address(host))
    except ValueError:
        raise MalformedAddress(f"{text!r} is no address: {host!r} is no {kind} host") from None
    raise MalformedAddress(f"{text!r} is no address: it begins with {kind!r}, expected ip4, ip6 or dns")


def reachable_addresses(bound: Address, interfaces: Iterable[str]) -> list[Address]:
    """Where others reach a socket bound to `bound`: itself, or, for 0.0.0.0, every interface but loopback.

    Without any other interface the loopback address is what is left: peers on this machine can use it.
    """
    if bound.kind == "ip4" and ipaddress.IPv4Address(bound.host).is_unspecified:
        hosts = [host for host in interfaces if not ipaddress.IPv4Address(host).is_loopback] or ["127.0.0.1"]
        return [Address("ip4", host, bound.port, bound.peer) for host in hosts]
    if bound.kind == "ip6" and ipaddress.IPv6Address(bound.host).is_unspecified:
        return [Address("ip6", "::1", bound.port, bound.peer)]
    return [bound]


def interface_hosts() -> list[str]:
    """The IPv4 address of each network interface of this machine (Linux; elsewhere only what names resolve to)."""
    hosts: list[str] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                reply = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
            except OSError:  # an interface without an IPv4 address
                continue
            hosts.append(socket.inet_ntoa(reply[20:24]))
    return hosts
