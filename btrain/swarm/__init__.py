"""Many real peers on this machine: processes from a forkserver, watched on one screen, with a closing report."""

from btrain.swarm.plan import SwarmPlan
from btrain.swarm.running import Closing, SwarmFailed, run_swarm

__all__ = ["Closing", "SwarmFailed", "SwarmPlan", "run_swarm"]
