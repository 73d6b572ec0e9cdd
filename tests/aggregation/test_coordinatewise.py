"""Coordinate-wise rules against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from btrain.aggregation import BadRuleOption, Median, TrimmedMean
from btrain.aggregation.dense import CHUNK_COLUMNS


@pytest.mark.parametrize("contributors", [1, 2, 5, 8])
def test_median_is_numpys(contributors: int) -> None:
    x_ND = torch.randn(contributors, CHUNK_COLUMNS + 7, generator=torch.Generator().manual_seed(contributors))
    np.testing.assert_allclose(Median().aggregate(x_ND).numpy(), np.median(x_ND.numpy(), axis=0), rtol=1e-6)


def test_trimmed_mean_drops_the_extremes() -> None:
    x_ND = torch.randn(9, 100, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for cut in (0, 2, 4):
        kept_ND = np.sort(x_ND.numpy(), axis=0)[cut : 9 - cut]
        np.testing.assert_allclose(TrimmedMean(byzantine_max=cut).aggregate(x_ND).numpy(), kept_ND.mean(0), rtol=1e-12)
    torch.testing.assert_close(TrimmedMean().aggregate(x_ND), Median().aggregate(x_ND))
    with pytest.raises(BadRuleOption):
        TrimmedMean(byzantine_max=5).aggregate(x_ND)
