"""Making links: dialling a peer at its known addresses, keeping members connected, answering who dials."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping

import trio

from btrain.errors import NetworkError
from btrain.identity import peer_id_text
from btrain.p2p.addresses import Address
from btrain.p2p.channel import Channel, LibP2PKeys, open_channel
from btrain.p2p.errors import ConnectionRefused, LinkLost, PeerUnreachable, PeerViolation, WrongPeer, WrongRun
from btrain.p2p.greeting import Crossed, Greeted, Greeter
from btrain.p2p.limits import Limits
from btrain.p2p.link import Link
from btrain.p2p.peers import PeerBook

logger = logging.getLogger(__name__)

_TRY_S_MIN = 0.1


class Dialler:
    """Dials and answers for one identity.

    `establish(channel, greeted)` takes a greeted channel into use; `accuse(peer, error)` reports a violation.
    """

    def __init__(
        self,
        identity: bytes,
        keys: LibP2PKeys,
        greeter: Greeter,
        book: PeerBook,
        limits: Limits,
        links: Mapping[bytes, Link],
        establish: Callable[[Channel, Greeted], None],
        accuse: Callable[[bytes, PeerViolation], None],
    ) -> None:
        self._identity = identity
        self._keys = keys
        self._greeter = greeter
        self._book = book
        self._limits = limits
        self._links = links
        self._establish = establish
        self._accuse = accuse
        self._locks: dict[bytes, trio.Lock] = {}
        self._linked = trio.Event()
        self._nursery: trio.Nursery

    def start(self, nursery: trio.Nursery) -> None:
        """Run the channels' tasks in `nursery`."""
        self._nursery = nursery

    def note_linked(self) -> None:
        """Somebody has been linked: wake the dials that gave way to the other side's."""
        self._linked.set()
        self._linked = trio.Event()

    async def keep_connected(self, peer: bytes, scope: trio.CancelScope) -> None:
        """Dial a member whenever it is not linked, with pauses that double from `redial_first_s` to `redial_max_s`.

        A link that did not last as long as the longest pause counts as one more failure.
        """
        patience_s = self._limits.patience_s if self._identity > peer else 0.0
        first_s, max_s = self._limits.redial_first_s, self._limits.redial_max_s
        with scope:
            await trio.sleep(patience_s)
            pause_s = first_s
            while True:
                if peer in self._links:
                    begin = trio.current_time()
                    await self._links[peer].ended.wait()
                    if trio.current_time() - begin > max_s:
                        pause_s = first_s
                    await trio.sleep(patience_s)
                elif self._book.addresses(peer):
                    try:
                        await self.dial(peer)
                    except NetworkError as error:
                        logger.debug("redial: %s", error)
                await trio.sleep(pause_s * random.uniform(0.8, 1.2))
                pause_s = min(2 * pause_s, max_s)

    async def dial(self, peer: bytes) -> None:
        """Try the known addresses of a peer in turn until one leads to a link, for at most `dial_timeout_s` in all.

        Raises WrongPeer, WrongRun or ConnectionRefused if that was the first answer, PeerUnreachable if none came.
        """
        async with self._locks.setdefault(peer, trio.Lock()):
            if peer in self._links:
                return
            begin = trio.current_time()
            if self._book.is_kept_away(peer, begin):
                raise ConnectionRefused(f"{peer_id_text(peer)} is kept away for what it did")
            addresses = self._book.addresses(peer)
            answer: NetworkError | None = None
            error: NetworkError = LinkLost("no address is known")
            for tried, address in enumerate(addresses):
                left_s = begin + self._limits.dial_timeout_s - trio.current_time()
                try:
                    with trio.fail_after(max(_TRY_S_MIN, left_s / (len(addresses) - tried))):
                        await self._dial_address(peer, address)
                    return
                except trio.TooSlowError:
                    error = LinkLost(f"no answer in {trio.current_time() - begin:.1f} s")
                except (WrongPeer, WrongRun, ConnectionRefused) as refusal:
                    answer = answer or refusal
                except NetworkError as failure:
                    error = failure
            if answer is not None:
                raise answer
            where = ", ".join(str(address) for address in addresses) or peer_id_text(peer)
            raise PeerUnreachable(f"cannot reach {where}: {error}")

    async def _dial_address(self, peer: bytes, address: Address) -> None:
        try:
            stream = await trio.open_tcp_stream(address.host, address.port)
        except OSError as error:
            raise LinkLost(_said(error)) from None
        channel = await open_channel(self._keys, stream, True, self._nursery)
        try:
            if channel.peer != peer:
                self._book.forget(peer, address)
                raise WrongPeer(f"at {address} answers another peer: {peer_id_text(channel.peer)}")
            self._establish(channel, await self._greeter.dial(channel))
        except Crossed:
            channel.close()
            while peer not in self._links:
                await self._linked.wait()
        except BaseException as error:
            channel.close()
            if isinstance(error, PeerViolation):
                self._accuse(peer, error)
            if isinstance(error, WrongRun | ConnectionRefused):
                raise type(error)(f"{address}: {error}") from None
            raise

    async def answer(self, stream: trio.SocketStream) -> None:
        """Authenticate who dialled and take the channel into use or refuse it; to be called under a deadline.

        Raises LinkLost or PeerViolation if it comes to nothing.
        """
        channel = await open_channel(self._keys, stream, False, self._nursery)
        try:
            greeted = await self._greeter.answer(channel)
            if greeted is None:
                channel.close()
            else:
                self._establish(channel, greeted)
        except BaseException as error:
            channel.close()
            if isinstance(error, PeerViolation):
                self._accuse(channel.peer, error)
            raise


def _said(error: OSError) -> str:
    """What the system said; trio wraps one failure per address it tried."""
    cause = error.__cause__ or error
    causes = cause.exceptions if isinstance(cause, BaseExceptionGroup) else (cause,)
    return str(getattr(causes[0], "strerror", None) or causes[0]).lower()
