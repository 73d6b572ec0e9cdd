"""The commented run.yaml files that `btrain init NAME` writes."""

from __future__ import annotations

import difflib
from typing import Final

from btrain.errors import ConfigError

_CONTRACT: Final = """\
# Everything above `local:` is the contract: all peers need the same values, whoever differs is refused and told where.
"""

_GROUP: Final = """\
group:
  start_when: {start_when}                # members that must be there before round 0
  admission: open              # newcomers on probation; or allowlist (the peer ids under `members`), or invite
  probation_rounds: 32         # rounds that a newcomer of an open run computes, audited, before it gets a seat
  # byzantine_max: {byzantine_max}           # that may lie or fail at once; left out: as many as start_when allows
verification:
  audits_per_round: 1          # members that recompute others' work in place of their own; none below four members
  sweep: true                  # who is proven to cheat in a round has the whole round audited
  # final_sweep: 3             # so many last rounds are audited too before the run is over, 0 to 4
  rollback: none               # or proven_round, window: a ban restores the parameters from before the cheat
aggregation: {{rule: centered_clip, tau: auto}}
deadlines: {{message: 1s, compute: auto, transfer: auto}}
"""

_LOCAL: Final = """\
local:                         # this machine only
  listen: /ip4/0.0.0.0/tcp/0   # port 0: any free one
  # announce: /ip4/203.0.113.5/tcp/4001        # what others dial, if it is not what this machine sees
  # join: [/ip4/203.0.113.5/tcp/4001/p2p/12D3KooW...]  # the line that another peer prints
  device: auto
  run_dir: runs/{run}
  checkpoints: {{every: 100, keep: 3}}
"""

_TASKS: Final = {
    "gpt": """\
run: small-gpt
model: {builtin: gpt, layers: 2, width: 64, heads: 4, context: 32}
data: {builtin: stdlib_text}   # Python's own sources, the same for equal Python releases; or {text: FILE}
optimizer:
  name: AdamW
  lr: 1e-2
  weight_decay: 0.1
  clip_grad_norm: 1.0
  schedule: {name: cosine, warmup: 20}
batch_size: 32                 # samples per worker and round
rounds: 400
seed: 0
precision: fp32
eval: {every: 20, samples: 1024}
""",
    "digits": """\
run: digits
model: {builtin: mlp, hidden: [32]}
data: {builtin: digits}        # 1797 images of 8x8 pixels; ships with scikit-learn
optimizer:
  name: SGD
  lr: 0.5
  momentum: 0.9
  nesterov: true
  schedule: {name: cosine}
batch_size: 64                 # samples per worker and round
rounds: 120
seed: 0
precision: fp32
eval: {every: 10, samples: 297}
""",
    "fashion": """\
run: fashion
model: {builtin: cnn, channels: [16, 32], hidden: 64}
data: {builtin: fashion_mnist}  # a folder of the four idx files, named below
optimizer:
  name: SGD
  lr: 0.05
  momentum: 0.9
  nesterov: true
  schedule: {name: cosine}
batch_size: 32                 # samples per worker and round
rounds: 600
seed: 0
precision: fp32
eval: {every: 50, samples: 2000}
""",
    "custom": """\
run: my-run
model: {entry_point: "my_package.model:build", args: {width: 256}}   # called as build(width=256) -> torch.nn.Module
data: {entry_point: "my_package.data:source", args: {}}              # -> a map-style btrain.data.Source
optimizer:
  name: AdamW
  lr: 3e-4
  weight_decay: 0.1
  clip_grad_norm: 1.0
  schedule: {name: cosine, warmup: 100}
batch_size: 32                 # samples per worker and round
rounds: 5000
seed: 0
precision: fp32
eval: {every: 100, samples: 1024}
""",
}
_START_WHEN: Final = {"gpt": (3, 1), "digits": (8, 3), "fashion": (8, 3), "custom": (5, 1)}
_LOCAL_EXTRA: Final = {"fashion": "  data_path: /usr/share/datasets/fashion-mnist\n"}


def template_names() -> tuple[str, ...]:
    """Names that `template` knows."""
    return tuple(_TASKS)


def template(name: str) -> str:
    """A complete run.yaml with comments. Raises ConfigError for an unknown name."""
    if name not in _TASKS:
        close = difflib.get_close_matches(name, _TASKS, n=1)
        suggestion = f"; did you mean {close[0]}?" if close else ""
        raise ConfigError(f"no template {name[:60]!r}: expected {', '.join(_TASKS)}{suggestion}")
    task = _TASKS[name]
    start_when, byzantine_max = _START_WHEN[name]
    run = task.split("\n", 1)[0].removeprefix("run: ")
    group = _GROUP.format(start_when=start_when, byzantine_max=byzantine_max)
    return _CONTRACT + task + group + _LOCAL.format(run=run) + _LOCAL_EXTRA.get(name, "")
