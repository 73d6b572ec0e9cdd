"""Jobs of the peers of one simulation: equal ones are done once.

A job that every member does alike (to judge a Table, say) comes as a `functools.partial`: its function and arguments
say what it is. In a real run each member does it for itself.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

RESULTS_KEPT = 512  # members do the same job within a few Delta


class SharedWork:
    """Runs jobs; remembers the latest results of those that say what they are."""

    def __init__(self) -> None:
        self._results: OrderedDict[Hashable, Any] = OrderedDict()

    def run(self, job: Callable[[], Any]) -> Any:
        """The result of a pure job, not to be changed in place."""
        if not isinstance(job, partial):
            return job()
        key = (job.func, job.args)
        if key not in self._results:
            self._results[key] = job()
            if len(self._results) > RESULTS_KEPT:
                self._results.popitem(last=False)
        return self._results[key]
