"""run.yaml -> RunConfig: strict, with the line of every error, and the contract as canonical bytes."""

from btrain.config.contract import contract_difference
from btrain.config.document import Override
from btrain.config.run_config import RunConfig, defaults, load, loads

__all__ = ["Override", "RunConfig", "contract_difference", "defaults", "load", "loads"]
