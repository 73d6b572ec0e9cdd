"""What came of churn among real processes, and what did not hold."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from btrain.identity import peer_id_text
from btrain.protocol.ledger import Block
from btrain.swarm.child import LOG
from btrain.swarm.churn_plan import ChurnPlan, Participant
from btrain.swarm.footprint import MIB, Footprint, left_behind, members_of
from btrain.verify.reading import Record
from btrain.verify.run import audit_run

SPARE = 32  # threads and open files that come and go: links that are being made or closed have some
RESIDENT_GROWTH_BYTES_MAX = 64 * MIB
OF_TORCH = "torchinductor_"  # a folder that torch makes for every user when it is loaded

Lives = Mapping[str, tuple[Footprint, Footprint]]  # by name: after the quiet time, and at the end


@dataclass(frozen=True)
class ChurnReport:
    """What came of it. Rates are rounds with a step in a minute."""

    quiet_rate: float
    churn_rate: float
    goodput: float
    blocks: int
    void: int
    joined: int
    left: int
    killed: int
    restarted: int
    attackers_banned: int
    slowest_join_s: float
    longest_lived: Lives
    faults: list[str]


def report_of(
    plan: ChurnPlan,
    run_dir: Path,
    peers: Collection[Participant],
    rates: tuple[float, float],
    lives: Lives,
    faults: Collection[str],
) -> ChurnReport:
    """The report of a run that is over; `rates` are those of the quiet time and of the churn, `faults` known ones."""
    blocks = _longest_ledger(peers)
    bans = {peer_id_text(ban.peer) for block in blocks for ban in block.bans}
    honest = [peer for peer in peers if peer.attack is None]
    attackers = {peer.peer_id for peer in peers if peer.attack is not None}
    found = [*faults, *audit_run(run_dir)["faults"], *_lost_rounds(peers, [block.hash.hex() for block in blocks])]
    found += [fault for peer in peers for fault in _ending(peer, banned=peer.peer_id in bans)]
    found += [f"honest {peer} was banned" for peer in bans - attackers]
    found += [fault for name, (before, after) in lives.items() for fault in _grown(name, before, after)]
    temporary = [path for path in (run_dir / "tmp").iterdir() if not path.name.startswith(OF_TORCH)]
    found += [f"{path} was left in the folder of temporary files" for path in temporary]
    quiet, churned = rates
    return ChurnReport(
        quiet_rate=quiet, churn_rate=churned, goodput=churned / quiet if quiet else 0.0, blocks=len(blocks),
        void=sum(block.void != 0 for block in blocks), joined=len(honest) - (plan.peers - plan.attackers),
        left=sum(peer.finished == "left" for peer in honest), killed=sum(peer.kills for peer in honest),
        restarted=sum(len(peer.pids) - 1 for peer in honest),
        attackers_banned=len(bans & attackers), slowest_join_s=max((peer.join_s for peer in honest), default=0.0),
        longest_lived=lives, faults=found,
    )  # fmt: skip


def _ending(peer: Participant, *, banned: bool) -> list[str]:
    """What is wrong with how a peer ended: it leaves in order, or is killed by the harness, or banned."""
    log = (peer.run_dir / LOG).read_text(errors="replace") if (peer.run_dir / LOG).exists() else ""
    alive = [pid for group in peer.pids for pid in members_of(group)]  # each is the first process of a group of its own
    faults = [f"{peer.name}: its log holds a traceback"] if "Traceback" in log else []
    faults += [f"{peer.name}: processes {alive} are still there"] if alive else []
    if banned or peer.killed_for_good:
        return faults
    if peer.exit_code != 0 or peer.finished != "left":
        faults.append(f"{peer.name} ended with exit code {peer.exit_code}: {peer.error or peer.finished}")
    return faults + [f"{peer.name}: {fault}" for fault in left_behind(peer.run_dir)]


def _longest_ledger(peers: Collection[Participant]) -> list[Block]:
    founded = [peer.run_dir for peer in peers if (peer.run_dir / "genesis").exists()]
    return max((Record.open(folder).replay()[0] for folder in founded), key=len)


def _lost_rounds(peers: Collection[Participant], ledger: list[str]) -> list[str]:
    """What any peer has decided stands in the ledger, but for what was open when all left."""
    last = max(round for peer in peers for round in peer.decided)
    lost = []
    for peer in peers:
        for round, hash in peer.decided.items():
            if round < len(ledger) and ledger[round] != hash:
                lost.append(f"{peer.name} had decided another block {round}")
            elif len(ledger) <= round < last - 1:
                lost.append(f"block {round}, which {peer.name} had decided, is lost")
    return lost


def _grown(name: str, before: Footprint, after: Footprint) -> list[str]:
    """What a peer that stayed holds more of than its connections explain."""
    more = max(1.0, after.sockets / before.sockets)
    grown = {
        "threads": (before.threads, after.threads, more * before.threads + SPARE),
        "open files": (before.descriptors, after.descriptors, more * before.descriptors + SPARE),
        "memory": (before.resident_bytes, after.resident_bytes, before.resident_bytes + RESIDENT_GROWTH_BYTES_MAX),
    }
    return [f"{name}: {what} grew from {was} to {now}" for what, (was, now, most) in grown.items() if now > most]
