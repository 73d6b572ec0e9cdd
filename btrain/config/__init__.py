"""run.yaml -> RunConfig: strict, with the line of every error, and the contract as canonical bytes."""

from btrain.config.contract import contract_difference
from btrain.config.document import Override
from btrain.config.run_config import RunConfig, defaults, load, loads
from btrain.config.schema import Parent

__all__ = ["Override", "Parent", "RunConfig", "contract_difference", "defaults", "load", "loads"]
