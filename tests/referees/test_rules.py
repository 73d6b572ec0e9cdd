"""Our other rules against byzfl's."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

from btrain.aggregation import GeometricMedian, Mean, Median, MultiKrum, NearestNeighborMixing, TrimmedMean


def vectors() -> torch.Tensor:
    x_ND = torch.randn(16, 500, generator=torch.Generator().manual_seed(0)) + 0.2
    x_ND[11:] *= -8
    return x_ND


@pytest.mark.parametrize("contributors", [15, 16])
def test_coordinate_rules(byzfl: ModuleType, contributors: int) -> None:
    x_ND = vectors()[:contributors]
    torch.testing.assert_close(TrimmedMean(byzantine_max=5).aggregate(x_ND), byzfl.TrMean(f=5)(x_ND))
    if contributors % 2:  # theirs takes the lower of the middle two
        torch.testing.assert_close(Median().aggregate(x_ND), byzfl.Median()(x_ND))


def test_geometric_median(byzfl: ModuleType) -> None:
    x_ND = vectors()
    theirs_D = byzfl.GeometricMedian(nu=1e-3, T=300)(x_ND)
    ours_D = GeometricMedian().aggregate(x_ND)
    assert float((ours_D - theirs_D).norm()) < 1e-4 * float(x_ND.norm(dim=1).min())


def test_multi_krum_keeps_the_same_contributors(byzfl: ModuleType) -> None:
    x_ND = vectors()
    torch.testing.assert_close(MultiKrum(byzantine_max=5).aggregate(x_ND), byzfl.MultiKrum(f=5)(x_ND))


def test_nearest_neighbor_mixing(byzfl: ModuleType) -> None:
    x_ND = vectors()
    mixed_ND = byzfl.NNM(f=5)(x_ND)
    torch.testing.assert_close(
        NearestNeighborMixing(then=Mean(), byzantine_max=5).aggregate(x_ND), mixed_ND.mean(0), atol=1e-5, rtol=1e-5
    )
