"""Sources of training samples: map-style, pure in (indices, seeds), fingerprinted by their content."""

from btrain.data.arrays import ArraySource
from btrain.data.opening import open_source
from btrain.data.source import Batch, Indices, Source, SplitName
from btrain.data.tokens import TokenSource

__all__ = ["ArraySource", "Batch", "Indices", "Source", "SplitName", "TokenSource", "open_source"]
