"""Batch-norm statistics, estimated anew and pooled."""

import numpy as np
import pytest
import torch
from torch import nn

from flsparse.nets.batch_norm import batch_norm_statistics, pooled, statistics_names


def test_the_mean_over_batches_of_batch_statistics() -> None:
    model = nn.Sequential(nn.BatchNorm1d(1))
    before = {n: v.clone() for n, v in model.state_dict().items()}
    found = batch_norm_statistics(model, [torch.tensor([[0.0], [2.0]]), torch.tensor([[4.0], [10.0]])])
    assert found["0.running_mean"] == pytest.approx([4.0])
    assert found["0.running_var"] == pytest.approx([10.0])  # (2 + 18) / 2, unbiased
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert model.training
    assert model[0].momentum == 0.1


def test_a_model_without_batch_norm_has_none() -> None:
    assert (
        batch_norm_statistics(nn.Sequential(nn.GroupNorm(1, 2), nn.BatchNorm1d(2, track_running_stats=False)), []) == {}
    )


def test_pooling_two_halves_equals_the_whole() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 3)) * [1, 2, 3] + [0, 5, -5]
    halves = np.split(x, [100])
    parts = [
        (len(h), {"n.running_mean": h.mean(0).astype("f4"), "n.running_var": h.var(0).astype("f4")}) for h in halves
    ]
    whole = pooled(parts)
    np.testing.assert_allclose(whole["n.running_mean"], x.mean(0), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(whole["n.running_var"], x.var(0), rtol=1e-4)
    assert whole["n.running_var"].dtype == np.float32


def test_names() -> None:
    names = ["a.weight", "a.running_mean", "a.running_var", "b.running_mean", "a.num_batches_tracked"]
    assert statistics_names(names) == ["a.running_mean", "a.running_var"]
