"""A town of real peers on loopback: started, killed, stopped and watched; what they leave behind is compared."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing import connection
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec
import pytest

from btrain.charter import charter_of
from btrain.config import RunConfig, loads
from btrain.identity import peer_id_text
from btrain.peer.store import Founded
from btrain.protocol.ledger import Block, LedgerState, check_certificate, check_genesis, open_block, open_genesis
from btrain.protocol.messages import Verifier
from btrain.storage.ledger_file import read_ledger
from tests.peer import peer_process

PATIENCE_S = 90.0
CONFIG = """\
run: town
model: {builtin: mlp, hidden: [16]}
data: {builtin: digits}
optimizer: {name: SGD, lr: 0.2, momentum: 0.9}
batch_size: 16
rounds: 3000
eval: {every: 1000, samples: 16}
deadlines: {message: 500ms}
local: {listen: /ip4/127.0.0.1/tcp/0}
"""
Event = dict[str, Any]


@dataclass
class Resident:
    """One peer of the town: its current process and all events since it first started."""

    name: str
    run_dir: Path
    process: Any
    channel: Connection
    events: list[Event] = field(default_factory=list)
    open: bool = True

    @property
    def exit_code(self) -> int | None:
        return self.process.exitcode  # type: ignore[no-any-return]

    def all(self, event: str) -> list[Event]:
        return [e for e in self.events if e["event"] == event]

    @property
    def peer_id(self) -> str:
        return str(self.all("started")[-1]["peer_id"])

    @property
    def address(self) -> str:
        return str(self.all("started")[-1]["addresses"][0])

    @property
    def height(self) -> int:
        """Rounds that it has decided or been told of."""
        return max([e["round"] + 1 for e in self.all("block")] + [e["round"] for e in self.all("caught_up")], default=0)

    @property
    def contributed(self) -> int:
        """The last round for which it trained."""
        return max([e["round"] for e in self.all("trained")], default=-1)


class Town:
    """The peers of one run, and what a test does to them."""

    def __init__(self, directory: Path, context: Any) -> None:
        self.directory, self._context = directory, context
        self.residents: dict[str, Resident] = {}
        self.text = CONFIG

    def config(self, founders: int, **settings: Any) -> str:
        """Set the configuration of the peers started from now on."""
        overrides = tuple(f"{key.replace('__', '.')}={value}" for key, value in settings.items())
        self.text = loads(CONFIG, overrides=overrides, peers=founders).to_yaml()
        return self.text

    def start(
        self,
        name: str,
        *,
        join: str | None = None,
        text: str | None = None,
        die: tuple[str, int, bool] | None = None,
        apart: tuple[str, ...] = (),
        nudge: int | None = None,
        **options: Any,
    ) -> Resident:
        """Start a peer, or start it again in its directory. apart, nudge: see `peer_process.run`."""
        receiving, sending = self._context.Pipe(duplex=False)
        options = {"run_dir": self.directory / name, **options}
        if join is not None:
            options["join"] = (join,)
        process = self._context.Process(
            target=peer_process.run,
            args=(sending, text or self.text, options, die, apart, nudge),
            name=name,
            daemon=True,
        )
        process.start()
        sending.close()
        before = self.residents.get(name)
        events = before.events if before is not None else []
        events.append({"event": "launched"})
        self.residents[name] = Resident(name, options["run_dir"], process, receiving, events)
        return self.residents[name]

    def found(self, *names: str, **options: Any) -> list[Resident]:
        """Start the founders of a run; the first is the bootstrap."""
        first = self.start(names[0], **options)
        self.until(lambda: bool(first.all("started")))
        return [first, *(self.start(name, join=first.address, **options) for name in names[1:])]

    def until(self, reached: Callable[[], bool], patience_s: float = PATIENCE_S) -> None:
        """Read events until `reached()`."""
        end = time.monotonic() + patience_s
        while not reached():
            if time.monotonic() > end:
                raise AssertionError(f"nothing came of it in {patience_s} s:\n{self.story()}")
            self._read(min(1.0, max(0.0, end - time.monotonic())))

    def _read(self, timeout_s: float) -> None:
        open_ones = {resident.channel: resident for resident in self.residents.values() if resident.open}
        if not open_ones:
            time.sleep(0.01)
        for channel in connection.wait(list(open_ones), timeout_s) if open_ones else []:
            resident = open_ones[channel]  # type: ignore[index]
            try:
                while resident.channel.poll():
                    resident.events.append(resident.channel.recv())
            except (EOFError, OSError):
                resident.open = False
                resident.channel.close()

    def goes_on(self, *names: str, rounds: int = 3) -> None:
        """Until each of the named peers has decided so many more rounds."""
        goal = {name: self.residents[name].height + rounds for name in names}
        self.until(lambda: all(self.residents[name].height >= goal[name] for name in names))

    def gone(self, *names: str) -> None:
        """Until the processes have ended and all of their events are read."""
        self.until(lambda: all(self.residents[n].exit_code is not None and not self.residents[n].open for n in names))

    def kill(self, *names: str) -> None:
        """SIGKILL."""
        for name in names:
            self.residents[name].process.kill()
        self.gone(*names)

    def signal(self, number: int, *names: str) -> None:
        """Send a signal."""
        for name in names:
            os.kill(self.residents[name].process.pid, number)

    def story(self) -> str:
        """What happened, for a failed assertion."""
        lines = []
        for resident in self.residents.values():
            log = resident.run_dir.with_suffix(".log")
            lines.append(f"--- {resident.name}: height {resident.height}, exit code {resident.exit_code}")
            quiet = ("trained", "checked", "evaluated", "round", "block", "reduced_again")
            lines += [str(event)[:300] for event in resident.events if event["event"] not in quiet][-25:]
            lines.append(str(resident.events[-1])[:300])
            lines.append(log.read_text(errors="replace")[-2000:] if log.exists() else "")
        return "\n".join(lines)

    # --- what they leave behind ---

    def blocks(self, name: str) -> list[Block]:
        """The ledger in the run directory, verified from the genesis on by somebody who knows nothing else."""
        run_dir = self.residents[name].run_dir
        founded = msgspec.msgpack.decode((run_dir / "genesis").read_bytes(), type=Founded)
        genesis, verifier = open_genesis(founded.genesis), Verifier()
        check_genesis(genesis, founded.signatures, verifier)
        state = LedgerState.start(genesis, charter_of(_config(genesis.contract)))
        blocks = []
        for stored in read_ledger(run_dir / "ledger"):
            block = open_block(stored.block)
            certificate = msgspec.msgpack.decode(stored.certificate, type=tuple[bytes, ...])
            check_certificate(block, certificate, state, verifier)
            state = state.advance(block)
            blocks.append(block)
        return blocks

    def check(self) -> None:
        """No ban, no fork, equal parameters after equal rounds; evidence nowhere."""
        ledgers = {name: self.blocks(name) for name in self.residents if self._has_ledger(name)}
        longest = max(ledgers.values(), key=len)
        for name, blocks in ledgers.items():
            assert [b.hash for b in blocks] == [b.hash for b in longest[: len(blocks)]], f"{name} forks"
            assert [ban for b in blocks for ban in b.bans] == [], self.story()
            assert list((self.residents[name].run_dir / "evidence").iterdir()) == []
        digests: dict[int, set[str]] = {}
        for resident in self.residents.values():
            assert resident.all("banned") == []
            assert resident.all("drift") == []
            for event in resident.all("finished"):
                digests.setdefault(event["round"], set()).add(event["digest"])
        assert all(len(found) == 1 for found in digests.values()), digests

    def contributors(self, name: str, since: int = 0) -> set[str]:
        """Whose gradients the ledger of `name` counts, from a round on."""
        return {peer_id_text(peer) for block in self.blocks(name)[since:] for peer in block.contributors}

    def _has_ledger(self, name: str) -> bool:
        return (self.residents[name].run_dir / "genesis").exists()

    def close(self) -> None:
        for resident in self.residents.values():
            if resident.exit_code is None:
                os.kill(resident.process.pid, signal.SIGCONT)
                resident.process.kill()
            resident.process.join(10)
            resident.process.close()
            if resident.open:
                resident.channel.close()


def _config(contract: bytes) -> RunConfig:
    return loads(contract.decode(), "contract")


@pytest.fixture(scope="session")
def server() -> Any:
    """The process that peers are forked from, with torch and libp2p loaded."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["torch._dynamo", "tests.peer.peer_process", "btrain.adversary", "btrain.peer.shell", "btrain.p2p.network"]
    )
    return context


@pytest.fixture
def town(tmp_path: Path, server: Any) -> Iterator[Town]:
    """An empty town; nobody in it outlives the test."""
    town = Town(tmp_path, server)
    yield town
    town.close()
