"""What people see of a run while it goes on: a board fed by events, shown as a live table or as plain lines."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from btrain.identity import short_id
from btrain.progress import HALTED, halted_text

CLIPPED_SHARE_MAX = 0.4
REFRESH_S = 0.25
LINE_EVERY_S = 2.0
LINES_MAX = 20
NOTES_MAX = 8

Event = Mapping[str, Any]
Say = Callable[[str], None]


@dataclass
class Row:
    """One peer as the table shows it."""

    name: str
    attack: str = ""
    status: str = "starting"
    role: str = ""
    round: int | None = None
    trained: float | None = None
    loss: float | None = None
    metric: float | None = None
    clipped: float | None = None
    seconds: float | None = None
    verdict: str = ""


@dataclass
class Board:
    """The state of all peers that the events tell of. `names` and `attacks` are by peer id."""

    rounds: int
    names: dict[str, str] = field(default_factory=dict)
    rows: dict[str, Row] = field(default_factory=dict)
    round: int = 0
    members: int = 0
    losses_left: int | None = None
    notes: list[str] = field(default_factory=list)
    overtime: int = 0  # rounds that make up for those that were undone
    _banned: set[str] = field(default_factory=set)
    _restored: set[int] = field(default_factory=set)

    def add(self, peer_id: str, name: str, attack: str | None = None) -> None:
        """Show a peer under a name."""
        self.names[peer_id] = name
        self.rows[peer_id] = Row(name, attack or "")

    def name(self, peer_id: str) -> str:
        """The peer's name, or the end of its id."""
        return self.names.get(peer_id, short_id(peer_id))

    def feed(self, source: str, event: Event) -> list[str]:
        """Take in an event of the peer `source`; returns what is worth a line of its own."""
        row = self.rows.setdefault(source, Row(self.name(source)))
        taking = getattr(self, f"_on_{event.get('event')}", None)
        said: list[str] = taking(source, row, event) or [] if taking is not None else []
        self.notes = (self.notes + said)[-NOTES_MAX:]
        return said

    def _on_started(self, source: str, row: Row, event: Event) -> None:
        row.status = "started"

    def _on_waiting(self, source: str, row: Row, event: Event) -> None:
        row.status = "waiting" if event["have"] is None else f"waiting ({event['have']} of {event['need']})"

    def _on_founded(self, source: str, row: Row, event: Event) -> None:
        row.status = "active"
        self.members = len(event["members"])

    def _on_round(self, source: str, row: Row, event: Event) -> None:
        row.round, row.role = event["round"], event["role"]
        self.members = event["members"]

    def _on_block(self, source: str, row: Row, event: Event) -> None:
        self.round = max(self.round, event["round"])
        row.round = event["round"]
        if row.status == HALTED:
            row.status = "active"
        row.clipped = event.get("clipped_share")
        row.seconds = sum(event["seconds"].values()) if event.get("seconds") else None
        self.losses_left = event.get("losses_left")
        for peer in event.get("absent", ()):
            self._set(peer, "absent")
        for peer in event.get("left", ()):
            self._set(peer, "left")
        for peer in event.get("admitted", ()):
            self._set(peer, "active")

    def _set(self, peer: str, status: str) -> None:
        row = self.rows.setdefault(peer, Row(self.name(peer)))
        if row.status != "banned":
            row.status = status

    def _on_trained(self, source: str, row: Row, event: Event) -> None:
        row.trained = event["loss"]

    def _on_evaluated(self, source: str, row: Row, event: Event) -> None:
        row.loss, row.metric = event.get("loss"), event.get("metric")

    def _on_banned(self, source: str, row: Row, event: Event) -> list[str]:
        peer = event["peer"]
        guilty = self.rows.setdefault(peer, Row(self.name(peer)))
        guilty.status, guilty.verdict = "banned", f"{event['deed']} in round {event['of_round']}"
        if peer in self._banned:
            return []
        self._banned.add(peer)
        return [f"BANNED {guilty.name} in round {event['round']}: {event['deed']} in round {event['of_round']}"]

    def _on_caught_up(self, source: str, row: Row, event: Event) -> list[str]:
        row.status = "active"
        return [f"{row.name} has caught up"]

    def _on_drift(self, source: str, row: Row, event: Event) -> list[str]:
        return [f"{row.name} has drifted: its parameters differ from those certified in round {event['round']}"]

    def _on_state_loaded(self, source: str, row: Row, event: Event) -> list[str]:
        return [f"{row.name} has healed: it took the certified state over"] if event.get("healed") else []

    def _on_fork(self, source: str, row: Row, event: Event) -> list[str]:
        guilty = ", ".join(self.name(peer) for peer in event["guilty"])
        return [
            f"{row.name} sees two certified chains from round {event['round']} on; signed both: {guilty or 'unknown'}"
        ]

    def _on_rolled_back(self, source: str, row: Row, event: Event) -> list[str]:
        return [f"{row.name} returns to the block before round {event['round']}: another chain stands"]

    def _on_halted(self, source: str, row: Row, event: Event) -> list[str]:
        row.status = HALTED
        return [f"{row.name}: {halted_text(event)}"]

    def _on_restored(self, source: str, row: Row, event: Event) -> list[str]:
        self.overtime = max(self.overtime, event["rounds_undone"])
        if event["round"] in self._restored:
            return []
        self._restored.add(event["round"])
        steps = f"step {event['from_step']} -> {event['step']}"
        return [f"rolled back to round {event['to_round']} in round {event['round']}: {steps}"]

    def _on_stalled(self, source: str, row: Row, event: Event) -> list[str]:
        return [f"{row.name} waits: {event.get('reason', 'nothing can be certified')}"]

    def _on_refusal(self, source: str, row: Row, event: Event) -> list[str]:
        return [f"{row.name} was refused: {event.get('reason', '')}"]

    def _on_error(self, source: str, row: Row, event: Event) -> list[str]:
        if row.status == "banned":
            return []
        row.status = "failed"
        return [f"{row.name}: {event['text']}"]

    def _on_finished(self, source: str, row: Row, event: Event) -> None:
        if row.status != "banned":
            row.status = "left" if event.get("reason") == "left" else "finished"
        row.loss, row.metric = event.get("loss"), event.get("metric")

    def median(self, of: Callable[[Row], float | None]) -> float | None:
        """Median over peers that do not attack and are not banned; None where nobody has a number."""
        found = (of(row) for row in self.rows.values() if not row.attack and row.status != "banned")
        numbers = sorted(value for value in found if value is not None and math.isfinite(value))
        return numbers[len(numbers) // 2] if numbers else None

    def line(self) -> str:
        """The run in one line."""
        planned = self.rounds + self.overtime
        closing = ", closing" if self.round >= planned else f" of {planned}"
        parts = [f"round {self.round:4d}{closing}"]
        loss, metric = self.median(lambda row: row.loss), self.median(lambda row: row.metric)
        clipped, seconds = self.median(lambda row: row.clipped), self.median(lambda row: row.seconds)
        trained = self.median(lambda row: row.trained)
        if loss is not None:
            parts.append(f"loss {loss:.3f}")
        elif trained is not None:
            parts.append(f"training loss {trained:.3f}")
        parts += [f"accuracy {metric:.3f}"] if metric is not None else []
        parts += [f"members {self.members}" + (f" ({len(self._banned)} banned)" if self._banned else "")]
        parts += [f"clipped {clipped:.0%}"] if clipped is not None else []
        parts += [f"{1000 * seconds:.0f} ms a round"] if seconds is not None else []
        return "  ".join(parts)

    def advice(self) -> str:
        """What the reader should know about the run's safety."""
        clipped = self.median(lambda row: row.clipped)
        left = {0: "no more losses can", 1: "1 more loss can"}.get(
            self.losses_left or 0, f"{self.losses_left} more losses can"
        )
        parts = [] if self.losses_left is None else [f"{left} be taken"]
        if clipped is not None and clipped > CLIPPED_SHARE_MAX:
            parts.append(f"clipped share {clipped:.0%}: batch_size is too small for robust averaging")
        return "; ".join(parts)

    def table(self) -> Table:
        """The board as a table."""
        table = Table(title=self.line(), caption=self.advice(), expand=False)
        for title in ("peer", "attack", "role", "round", "loss", "clipped", "verdict", "status"):
            table.add_column(title, justify="right" if title in {"round", "loss", "clipped"} else "left")
        for row in self.rows.values():
            style = "red" if row.status == "banned" else "yellow" if row.status in {"absent", "failed", HALTED} else ""
            table.add_row(
                Text(row.name), Text(row.attack), Text(row.role), "" if row.round is None else str(row.round),
                _number(row.trained if row.loss is None else row.loss),
                "" if row.clipped is None else f"{row.clipped:.0%}",
                Text(row.verdict), Text(row.status), style=style,
            )  # fmt: skip
        return table


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


class Screen:
    """Shows a board while it changes: a live table on a terminal, else a line now and then."""

    def __init__(self, board: Board, say: Say, *, live: bool) -> None:
        self.board = board
        self._say = say
        console = Console()
        self._live = Live(console=console, auto_refresh=False, transient=True) if live and console.is_terminal else None
        self._shown_at = -math.inf
        self._shown_round = -1

    def feed(self, source: str, event: Event) -> None:
        """Take in an event, and show what it changes."""
        for line in self.board.feed(source, event):
            self.say(line)
        self.refresh()

    def say(self, line: str) -> None:
        """A line that stays, above the table."""
        if self._live is not None:
            self._live.console.print(line, highlight=False, markup=False)
        else:
            self._say(line)

    def refresh(self) -> None:
        """Show the board if it is time to."""
        now = time.monotonic()
        if self._live is not None and now - self._shown_at >= REFRESH_S:
            self._live.update(self.board.table(), refresh=True)
            self._shown_at = now
        elif self._live is None and now - self._shown_at >= LINE_EVERY_S and self._progressed():
            self._say(self.board.line())
            self._shown_at, self._shown_round = now, self.board.round

    def _progressed(self) -> bool:
        """Whether a further line is due: about LINES_MAX of them tell a whole run."""
        step = max(1, self.board.rounds // LINES_MAX)
        return self.board.round >= self._shown_round + step and self.board.members > 0

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live.console.print(self.board.table())
        elif self.board.round > self._shown_round and self.board.members > 0:
            self._say(self.board.line())


class RoundLine:
    """Says now and then how far a simulation has come."""

    def __init__(self, rounds: int, say: Say) -> None:
        self._rounds, self._say = rounds, say
        self._said_at = time.monotonic()

    def __call__(self, round: int) -> None:
        """A round is over."""
        now = time.monotonic()
        if now - self._said_at >= LINE_EVERY_S:
            self._say(f"round {round:4d} of {self._rounds}")
            self._said_at = now
