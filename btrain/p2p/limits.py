"""The limits of the network, and the two meters that enforce them: a rate and a budget of bytes."""

from __future__ import annotations

import threading
from dataclasses import dataclass

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one peer, and all together, may take from this process. Strangers are peers outside `set_members`."""

    # Messages of the control plane.
    control_message_bytes_max: int = 64 * KIB
    messages_per_s_max: float = 2000.0
    stranger_messages_per_s_max: float = 50.0
    stranger_message_bytes: int = 16 * KIB  # a longer one counts as several: to a newcomer all members are strangers
    burst_s: float = 2.0  # a peer that was quiet may send this many seconds' worth of messages at once
    flood_s: float = 3.0  # a peer that has been slowed down for this long is dropped
    queue_messages_max: int = 16 * KIB
    queue_bytes_max: int = 32 * MIB

    # Blobs.
    blob_bytes_max: int = 256 * MIB
    blobs_per_s_max: float = 2000.0
    bytes_in_flight_max: int = (
        512 * MIB
    )  # per peer and direction: queued to it, or received from it and not yet handled
    bytes_in_flight_total_max: int = 2 * GIB  # received from all peers and not yet handled
    blob_requests_max: int = 1024
    blob_request_s: float = 60.0

    # Connections.
    strangers_max: int = 64
    stranger_s: float = 10.0  # how long a stranger may stay when others wait for its place
    connections_max: int = 256
    handshakes_max: int = 64
    handshake_s: float = 10.0
    handshakes_per_s_max: float = 10.0  # per remote host; each costs some 10 ms
    handshakes_burst: float = 200.0
    dial_timeout_s: float = 10.0
    write_s: float = 5.0  # the muxer underneath gives up after 5 s at a zero window
    stall_s: float = 10.0
    stall_bytes_min: int = 64 * KIB  # a blob under way moves at least so far in `stall_s`
    heartbeat_s: float = 2.0
    heartbeats_missed_max: int = 3
    patience_s: float = 2.0  # the larger identity of a pair lets the smaller one dial first
    redial_first_s: float = 0.1
    redial_max_s: float = 5.0
    quarantine_s: float = 30.0
    close_s: float = 2.0

    def __post_init__(self) -> None:
        if not self.blob_bytes_max <= self.bytes_in_flight_max <= self.bytes_in_flight_total_max:
            raise ValueError("blob_bytes_max <= bytes_in_flight_max <= bytes_in_flight_total_max does not hold")


class Rate:
    """A token bucket: `per_s` units a second, at most `burst` of them saved up."""

    def __init__(self, per_s: float, burst: float, now: float) -> None:
        self._per_s = per_s
        self._burst = burst
        self._tokens = burst
        self._then = now

    def take(self, now: float, units: float = 1.0) -> float:
        """Spend units; the seconds to wait before they are covered, 0.0 if they are already."""
        self._refill(now)
        self._tokens -= units
        return max(0.0, -self._tokens / self._per_s)

    def try_take(self, now: float) -> bool:
        """Spend one unit if there is one."""
        self._refill(now)
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True

    def spare(self, now: float) -> float:
        """The share of the burst that is saved up; below 0 while a unit is owed."""
        self._refill(now)
        return self._tokens / self._burst if self._burst else 0.0

    def _refill(self, now: float) -> None:
        self._tokens = min(self._burst, self._tokens + (now - self._then) * self._per_s)
        self._then = now


class Budget:
    """A number of bytes shared by threads."""

    def __init__(self, bytes_max: int) -> None:
        self._free = bytes_max
        self._lock = threading.Lock()

    def take(self, count: int) -> bool:
        """Reserve `count` bytes if there are so many left."""
        with self._lock:
            if count > self._free:
                return False
            self._free -= count
            return True

    def give(self, count: int) -> None:
        """Return `count` reserved bytes."""
        with self._lock:
            self._free += count


@dataclass(slots=True)
class Traffic:
    """Bytes exchanged with one peer since the start, per plane: control as on TCP, bulk before TLS (+0.2 %)."""

    control_sent: int = 0
    control_received: int = 0
    bulk_sent: int = 0
    bulk_received: int = 0
