"""The fields of run.yaml, their types, bounds and defaults. Rules that span several fields stand in `checks`.

Everything but `local` is the contract: equal for all peers of a run, hashed, and named field by field when it differs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag

from btrain.config.values import (
    Arguments,
    AutoOrPositive,
    Device,
    Duration,
    DurationOrAuto,
    EntryPoint,
    FileName,
    Fingerprint,
    HostPort,
    ListenAddress,
    LocalPath,
    PeerAddress,
    PeerIdText,
    RunName,
)
from btrain.protocol.closing import FINAL_SWEEP_MAX

Count = Annotated[int, Field(ge=1, le=1_000_000_000)]
Width = Annotated[int, Field(ge=1, le=65_536)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """A mapping of run.yaml: immutable, no unknown key, no conversion of types, finite numbers."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True)


class Choice:
    """Tells which of several sections a mapping is, by the key that it holds (`entry_point`) or by that key's value.

    named: keys whose value names the section, as in {builtin: gpt}. keys: keys that are the name themselves.
    default: the section of a mapping that holds none of them.
    """

    def __init__(self, named: tuple[str, ...] = (), keys: tuple[str, ...] = (), default: str | None = None) -> None:
        self.named, self.keys, self.default = named, keys, default
        self.__name__ = "choice"  # pydantic names what it calls

    @property
    def selectors(self) -> tuple[str, ...]:
        return self.named + self.keys

    def __call__(self, value: object) -> str | None:
        fields = value if isinstance(value, Mapping) else value.__dict__ if isinstance(value, Section) else {}
        present = [key for key in self.selectors if key in fields]
        if len(present) != 1:
            return self.default if isinstance(value, Mapping) and not present else None
        name = fields[present[0]] if present[0] in self.named else present[0]
        return name if isinstance(name, str) else None


class Model(Section):
    """What every model may name: where its first parameters lie on this machine, and what they are for all."""

    start: FileName | None = Field(default=None, alias="from")
    """A safetensors file with x[0] in place of one built from the seed. Its name is no part of the contract."""
    fingerprint: Fingerprint | None = None
    """Of x[0] where it is not built from the seed; the file gives it, a newcomer without the file names it."""


class LogisticRegression(Model):
    builtin: Literal["logreg"]


class Mlp(Model):
    builtin: Literal["mlp"]
    hidden: Annotated[tuple[Width, ...], Field(min_length=1, max_length=64)] = (32,)


class Cnn(Model):
    builtin: Literal["cnn"]
    channels: Annotated[tuple[Width, ...], Field(min_length=1, max_length=16)] = (16, 32)
    hidden: Width = 64


class Gpt(Model):
    builtin: Literal["gpt"]
    layers: Width = 2
    width: Width = 64
    heads: Width = 4
    context: Width = 32


class ModelEntryPoint(Model):
    """`function(**args) -> torch.nn.Module`, called under the contract's seed."""

    entry_point: EntryPoint
    args: Arguments = {}


ModelSection = Annotated[
    Annotated[LogisticRegression, Tag("logreg")]
    | Annotated[Mlp, Tag("mlp")]
    | Annotated[Cnn, Tag("cnn")]
    | Annotated[Gpt, Tag("gpt")]
    | Annotated[ModelEntryPoint, Tag("entry_point")],
    Discriminator(Choice(named=("builtin",), keys=("entry_point",))),
]


class DataSection(Section):
    fingerprint: Fingerprint | None = None


class BuiltinData(DataSection):
    builtin: Literal["digits", "fashion_mnist"]


class Sequences(DataSection):
    context: Width | None = None
    """Tokens of one sample; None: the model's own `context`, or 32."""


class StandardLibraryText(Sequences):
    builtin: Literal["stdlib_text"]


class TextData(Sequences):
    """A file read byte by byte; `eval` is another one to evaluate on, in place of the first one's end."""

    text: FileName
    eval: FileName | None = None


class TokenData(Sequences):
    """A file of little-endian uint16 tokens."""

    tokens: FileName
    eval: FileName | None = None
    vocabulary: Annotated[int, Field(ge=2, le=65_536)] | None = None


class DataEntryPoint(DataSection):
    """`function(**args)` returning a map-style source."""

    entry_point: EntryPoint
    args: Arguments = {}


DataUnion = Annotated[
    Annotated[BuiltinData, Tag("digits")]
    | Annotated[BuiltinData, Tag("fashion_mnist")]
    | Annotated[StandardLibraryText, Tag("stdlib_text")]
    | Annotated[TextData, Tag("text")]
    | Annotated[TokenData, Tag("tokens")]
    | Annotated[DataEntryPoint, Tag("entry_point")],
    Discriminator(Choice(named=("builtin",), keys=("text", "tokens", "entry_point"))),
]


class Schedule(Section):
    """Factor on the learning rate: up linearly over `warmup` steps, then constant or falling to `final` at the end."""

    name: Literal["constant", "cosine", "linear"] = "constant"
    warmup: Annotated[int, Field(ge=0, le=1_000_000_000)] = 0
    final: Annotated[float, Field(ge=0, le=1)] = 0.0


class OptimizerSection(Section):
    lr: Positive
    weight_decay: NotNegative = 0.0
    clip_grad_norm: Positive | None = None
    schedule: Schedule = Schedule()


class Sgd(OptimizerSection):
    name: Literal["SGD"]
    momentum: Share = 0.0
    nesterov: bool = False


class Adam(OptimizerSection):
    name: Literal["Adam", "AdamW"]
    betas: tuple[Share, Share] = (0.9, 0.999)
    eps: Positive = 1e-8


OptimizerUnion = Annotated[
    Annotated[Sgd, Tag("SGD")] | Annotated[Adam, Tag("Adam")] | Annotated[Adam, Tag("AdamW")],
    Discriminator(Choice(named=("name",))),
]


class Evaluation(Section):
    every: Count = 20
    samples: Count = 1024


def _names_or_list(value: object) -> object:
    """`{eth: 12D3KooW...}` and `[12D3KooW...]` alike; the names are for people and no part of the contract."""
    return tuple(value.values()) if isinstance(value, Mapping) else value


class Group(Section):
    start_when: Annotated[int, Field(ge=1, le=64)] = 1
    """Members that must be there before round 0; with `members`, all of them unless given."""
    admission: Literal["open", "allowlist", "invite"] = "open"
    """Who may come after the founding: anybody on probation, the listed ids, or whom members have invited."""
    probation_rounds: Annotated[int, Field(ge=1, le=1_000_000)] = 32
    """k of an open run: rounds for which a newcomer computes and is audited before it gets a seat."""
    invitations: Annotated[int, Field(ge=1, le=32)] = 1
    """With `invite`, members that must have invited a newcomer; b + 1 unless given: one of them is honest then."""
    byzantine_max: Annotated[int, Field(ge=0, le=31)] = 0
    """b, members that may be faulty at the same time; the most that `start_when` allows unless given."""
    members: Annotated[tuple[PeerIdText, ...], Field(max_length=64), BeforeValidator(_names_or_list)] = ()


class Tolerance(Section):
    """How far a recomputed gradient may lie off, relative to its norm, by the precision it is computed in."""

    fp32: Annotated[float, Field(gt=0, lt=1)] = 1e-4
    bf16: Annotated[float, Field(gt=0, lt=1)] = 1e-2


class Verification(Section):
    audits_per_round: Annotated[float, Field(ge=0, le=16)] = 1.0
    custody_rounds: Annotated[int, Field(ge=2, le=4096)] = 16
    sweep: bool = True
    """Whether a proven cheat has its whole round audited again."""
    final_sweep: Annotated[int, Field(ge=0, le=FINAL_SWEEP_MAX)] = 0
    """Rounds at the end that are audited as after a proven cheat before the run is over; left out: 3 if any can be."""
    rollback: Literal["none", "proven_round", "window"] = "none"
    """Whether the block that bans a cheat restores the parameters from before its work, since the proof or all kept."""
    tolerance: Tolerance = Tolerance()
    state_tolerance: Annotated[float, Field(ge=0, lt=1)] = 2**-20
    """How far states of honest machines may lie apart, relative to the root mean square of each tensor."""


class Rule(Section):
    """The rule of `btrain.aggregation` and its options."""

    def options(self) -> dict[str, Any]:
        """Keyword arguments for `btrain.aggregation.get_rule`."""
        return self.model_dump(exclude={"rule"}, exclude_none=True)


class Mean(Rule):
    rule: Literal["mean"]


class CenteredClip(Rule):
    rule: Literal["centered_clip"] = "centered_clip"
    tau: AutoOrPositive = "auto"
    c: Positive = 1.0


class GeometricMedian(Rule):
    rule: Literal["geometric_median"]


class Krum(Rule):
    rule: Literal["krum"]


class MultiKrum(Rule):
    rule: Literal["multi_krum"]
    selected: Annotated[int, Field(ge=1, le=64)] | None = None


RuleUnion = Annotated[
    Annotated[Mean, Tag("mean")]
    | Annotated[CenteredClip, Tag("centered_clip")]
    | Annotated[GeometricMedian, Tag("geometric_median")]
    | Annotated[Krum, Tag("krum")]
    | Annotated[MultiKrum, Tag("multi_krum")],
    Discriminator(Choice(named=("rule",), default="centered_clip")),
]


class Deadlines(Section):
    """In seconds here, as text with a unit in the file. None is `auto`: three times the median that members report."""

    message_s: Duration = Field(default=1.0, alias="message")
    compute_s: DurationOrAuto = Field(default=None, alias="compute")
    transfer_s: DurationOrAuto = Field(default=None, alias="transfer")


class Checkpoints(Section):
    every: Count = 100
    """Rounds between two checkpoints of this machine."""
    keep: Annotated[int, Field(ge=1, le=100_000)] = 3


def _one_or_more(value: object) -> object:
    return (value,) if isinstance(value, str) else value


class Local(Section):
    """What belongs to this machine and is never hashed."""

    listen: ListenAddress = "/ip4/0.0.0.0/tcp/0"
    announce: Annotated[tuple[ListenAddress, ...], BeforeValidator(_one_or_more), Field(max_length=64)] = ()
    join: Annotated[tuple[PeerAddress, ...], BeforeValidator(_one_or_more), Field(max_length=64)] = ()
    invitations: Annotated[tuple[str, ...], BeforeValidator(_one_or_more), Field(max_length=32)] = ()
    """What members wrote with `btrain invite`, for a run that admits by `invite`."""
    identity: LocalPath | None = None
    device: Device = "auto"
    run_dir: LocalPath = Path("runs/run")
    """`runs/` and the run's name unless given."""
    fork_from: FileName | None = None
    """RUN_DIR or RUN_DIR:ROUND of the run to go on from, whose record is verified here: see `Parent`."""
    data_path: LocalPath | None = None
    """Where the data lies here: a file or folder in place of the one that `data` names."""
    metrics: HostPort | None = None
    """Where Prometheus may read metrics."""
    checkpoints: Checkpoints = Checkpoints()

    @property
    def identity_path(self) -> Path:
        return self.identity or self.run_dir / "identity.key"


def _sorted(ids: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted(set(ids)))


class Parent(Section):
    """The run that this one goes on from, as of one of its blocks. `--fork-from` fills it in."""

    run: Fingerprint
    round: Annotated[int, Field(ge=0, lt=2**32)]
    """Of the block."""
    block: Fingerprint
    fingerprint: Fingerprint
    """Of x[0]: the newest state that the parent's ledger certifies up to that block, its steps counted anew."""
    banned: Annotated[tuple[PeerIdText, ...], Field(max_length=256), AfterValidator(_sorted)] = ()
    """Everybody who was banned up to that block, there and in the runs before; they stay so."""


class Fields(Section):
    """All of run.yaml."""

    run: RunName
    protocol: Literal[1] = 1
    codec: Literal["i8-absmax-1024-v1"] = "i8-absmax-1024-v1"
    fork_from: Parent | None = None
    model: ModelSection | None = None
    data: DataUnion | None = None
    optimizer: OptimizerUnion | None = None
    batch_size: Count = 32
    """Samples per worker and round."""
    rounds: Annotated[int, Field(ge=1, le=100_000_000)] = 1000
    local_steps: Count = 1
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    eval: Evaluation = Evaluation()
    group: Group = Group()
    verification: Verification = Verification()
    aggregation: RuleUnion = CenteredClip()
    deadlines: Deadlines = Deadlines()
    state_sync_every: Annotated[int, Field(ge=1, le=4096)] = 16
    local: Local = Local()
