"""Malicious peers: small classes that override single steps of an honest peer's behaviour.

The same class runs in unit tests, in the simulator, in `btrain swarm` and behind `btrain peer --adversary`.
"""

from btrain.adversary.adversary import Adversary
from btrain.adversary.registry import adversary_names, adversary_variants, attack_name, first_round, get_adversary

__all__ = ["Adversary", "adversary_names", "adversary_variants", "attack_name", "first_round", "get_adversary"]
