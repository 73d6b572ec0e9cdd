"""The file of `btrain simulate --faults`: a plan of faults in YAML, as strict as run.yaml."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, PlainValidator, ValidationError

from btrain.config.document import Document, KeyPath, parse_document
from btrain.config.problems import config_error, problems_of
from btrain.config.run_config import read_text
from btrain.config.schema import Section
from btrain.config.values import expected, parsed_seconds
from btrain.simulation.faults import CALM, Faults, Outage, Partition, rolling_outages
from btrain.simulation.heap import Clock, LinkPlan, SlowReader
from btrain.simulation.scenario import Liveness

TIME_S_MAX = 24 * 3600.0
DRIFT_PPM_MAX = 100_000  # a tenth


def _microseconds(value: object) -> int:
    seconds = parsed_seconds(value)
    if seconds is None or seconds > TIME_S_MAX:
        raise expected("a time such as 0s, 20ms or 1.5min, at most 24h")
    return round(seconds * 1e6)


def _one_or_more(value: object) -> object:
    return (value,) if isinstance(value, int) else value


Time = Annotated[int, PlainValidator(_microseconds)]
Share = Annotated[float, Field(ge=0, le=1)]
Loss = Annotated[float, Field(ge=0, lt=1)]
Peer = Annotated[int, Field(ge=0, le=255)]
Peers = Annotated[tuple[Peer, ...], BeforeValidator(_one_or_more), Field(min_length=1, max_length=256)]
Rate = Annotated[int, Field(ge=1, le=10**12)]


class LinkSection(Section):
    """How links treat packets."""

    latency: Annotated[tuple[Time, ...], Field(min_length=2, max_length=2)] = (
        CALM.latency_min_us,
        CALM.latency_max_us,
    )
    """Least and most; each packet draws."""
    bandwidth: Rate | None = None
    """Bytes a second, one packet after the other; none: no limit."""
    loss: Loss = 0.0
    duplication: Share = 0.0
    reordering: Share = 1.0
    """Share of the packets that may overtake earlier ones: 1 is a datagram network, 0 a stream."""

    def plan(self) -> LinkPlan:
        """As the heap takes it."""
        least, most = self.latency
        return LinkPlan(least, most, self.bandwidth, self.loss, self.duplication, self.reordering)


class OneLink(LinkSection):
    """The links of some peers to others."""

    from_: Peers = Field(alias="from")
    to: Peers


class PartitionSection(Section):
    """Groups that do not hear each other."""

    from_: Peers = Field(alias="from")
    to: Peers
    start: Time
    end: Time
    one_way: bool = False
    clogged: bool = False


class OutageSection(Section):
    """A peer that is not itself for a while."""

    peer: Peer
    kind: Literal["crash", "freeze", "cut", "clog", "deaf", "mute"]
    start: Time
    end: Time | None = None


class ClockSection(Section):
    """A peer's clock."""

    peer: Peer
    offset: Time = 0
    drift_ppm: Annotated[int, Field(ge=-DRIFT_PPM_MAX, le=DRIFT_PPM_MAX)] = 0


class ReaderSection(Section):
    """A peer that reads slowly."""

    peer: Peer
    bytes_per_s: Rate
    start: Time = 0
    end: Time


class DiskSection(Section):
    """Every peer's disk."""

    sync: Time = 0
    """How long a batch takes to be durable; a crash meanwhile loses part of it."""


class RandomSection(Section):
    """Outages drawn from the run's seed."""

    outages: Annotated[int, Field(ge=0, le=10_000)]
    at_once: Annotated[int, Field(ge=1, le=256)] = 1
    longest: Time = 10_000_000


class LivenessSection(Section):
    """What the run must do once all faults are over."""

    rounds: Annotated[int, Field(ge=0, le=100_000)] = 5
    within: Time = 300_000_000


class FaultFields(Section):
    """All of the file."""

    safety: Time
    link: LinkSection = LinkSection()
    links: tuple[OneLink, ...] = ()
    partitions: tuple[PartitionSection, ...] = ()
    outages: tuple[OutageSection, ...] = ()
    clocks: tuple[ClockSection, ...] = ()
    slow_readers: tuple[ReaderSection, ...] = ()
    disk: DiskSection = DiskSection()
    random: RandomSection | None = None
    liveness: LivenessSection = LivenessSection()


@dataclass(frozen=True)
class FaultFile:
    """A checked file; `faults` makes the plan for a number of peers."""

    fields: FaultFields
    document: Document

    def faults(self, peers: int, seed: int) -> Faults:
        """The plan for so many peers; drawn outages follow from the seed. Raises ConfigError."""
        problems = [self.document.error(path, message) for path, message in _misfits(self.fields, peers)]
        if problems:
            raise config_error(problems)
        fields = self.fields
        outages = tuple(Outage(o.peer, o.kind, o.start, o.end) for o in fields.outages)
        return Faults(
            outages + _drawn(fields, peers, seed),
            tuple(Partition(p.from_, p.to, p.start, p.end, p.one_way, p.clogged) for p in fields.partitions),
            fields.link.plan(),
            {(src, dst): link.plan() for link in fields.links for src in link.from_ for dst in link.to},
            {clock.peer: Clock(clock.offset, clock.drift_ppm) for clock in fields.clocks},
            {r.peer: SlowReader(r.bytes_per_s, r.start, r.end) for r in fields.slow_readers},
            fields.disk.sync,
            fields.safety,
        )

    @property
    def liveness(self) -> Liveness:
        """What the run must do afterwards."""
        return Liveness(self.fields.liveness.rounds, self.fields.liveness.within)


def load_faults(path: str | os.PathLike[str]) -> FaultFile:
    """Read a file. Raises ConfigError naming file, line and key of everything that is wrong."""
    return loads_faults(read_text(path, "docs/simulator.md shows one"), os.fspath(path))


def loads_faults(text: str, name: str = "faults.yaml") -> FaultFile:
    """Check a plan given as text; `name` is what errors call it."""
    document = parse_document(text, name)
    try:
        fields = FaultFields.model_validate(document.data)
    except ValidationError as error:
        raise config_error(list(problems_of(error, document, FaultFields))) from None
    problems = [document.error(path, message) for path, message in _contradictions(fields)]
    if problems:
        raise config_error(problems)
    return FaultFile(fields, document)


def _drawn(fields: FaultFields, peers: int, seed: int) -> tuple[Outage, ...]:
    if fields.random is None:
        return ()
    r, dice = fields.random, random.Random(f"btrain/faults/{seed}")
    drawn = rolling_outages(dice, peers, r.at_once, r.outages, 0, max(1, fields.safety), r.longest)
    return tuple(replace(o, end_us=min(o.end_us or fields.safety, fields.safety)) for o in drawn.outages)


def _contradictions(fields: FaultFields) -> Iterator[tuple[KeyPath, str]]:
    """What is wrong whatever the number of peers."""
    for name in ("partitions", "outages", "slow_readers"):
        sections: Sequence[PartitionSection | OutageSection | ReaderSection] = getattr(fields, name)
        for i, section in enumerate(sections):
            if section.end is None:
                if getattr(section, "kind", None) != "crash":
                    yield (name, i), "has no end; only a crash may be for ever"
            elif section.end <= section.start:
                yield (name, i, "end"), "is not after the start"
            elif section.end > fields.safety:
                yield (name, i, "end"), "is after the end of the safety phase, when every fault is over"
    links: list[tuple[KeyPath, LinkSection]] = [(("link",), fields.link)]
    links += [(("links", i), link) for i, link in enumerate(fields.links)]
    for path, link in links:
        if link.latency[0] > link.latency[1]:
            yield (*path, "latency"), "the least is above the most"


def _misfits(fields: FaultFields, peers: int) -> Iterator[tuple[KeyPath, str]]:
    """Peers that the run does not have."""
    for name in ("links", "partitions"):
        for i, section in enumerate(getattr(fields, name)):
            for key, side in (("from", section.from_), ("to", section.to)):
                yield from (((name, i, key), _no_peer(peer, peers)) for peer in side if peer >= peers)
    for name in ("outages", "clocks", "slow_readers"):
        for i, section in enumerate(getattr(fields, name)):
            if section.peer >= peers:
                yield (name, i, "peer"), _no_peer(section.peer, peers)


def _no_peer(peer: int, peers: int) -> str:
    return f"there is no peer {peer}; the {peers} peers are 0 to {peers - 1}"
