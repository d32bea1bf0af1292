import sys
from typing import Any

import numpy as np
import pytest

from flsparse import rng
from flsparse.tasks.partitions import dirichlet_equal, iid, make_partition, natural

LABELS = np.repeat(np.arange(10), 600)


def mixes(parts: list[np.ndarray], labels: np.ndarray = LABELS) -> np.ndarray:
    return np.stack([np.bincount(labels[part], minlength=10) / len(part) for part in parts])


def assert_disjoint(parts: list[np.ndarray], samples: int, nodes: int) -> None:
    assert len(parts) == nodes
    assert min(len(part) for part in parts) >= 1
    together = np.concatenate(parts)
    assert len(np.unique(together)) == len(together) <= samples
    assert all((np.diff(part) > 0).all() for part in parts)


@pytest.mark.parametrize("kind", ["dirichlet_equal", "dirichlet", "iid"])
def test_every_sample_has_one_node_and_the_seed_decides(kind: str) -> None:
    config = {"kind": kind, "alpha": 0.5}
    first, again, other = (make_partition(config, LABELS, None, 6000, 30, seed) for seed in (7, 7, 8))
    assert_disjoint(first, 6000, 30)
    assert sum(map(len, first)) == 6000
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize(("nodes", "alpha"), [(100, 0.01), (100, 1.0), (7, 0.1), (1000, 0.1), (6000, 0.1)])
def test_dirichlet_equal_has_equal_sizes(nodes: int, alpha: float) -> None:
    parts = dirichlet_equal(LABELS, nodes, alpha, rng.stream(0, 0, -1, "test"))
    assert_disjoint(parts, 6000, nodes)
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    assert sum(sizes) == 6000


def test_label_mixes_follow_alpha() -> None:
    # The variance of one class's share under a symmetric Dirichlet of 10 classes is 0.09 / (10 alpha + 1).
    for alpha in (0.1, 1.0, 10.0):
        found = mixes(
            dirichlet_equal(np.repeat(np.arange(10), 6000), 100, alpha, rng.stream(3, 0, -1, "test")),
            np.repeat(np.arange(10), 6000),
        ).var()
        assert found == pytest.approx(0.09 / (10 * alpha + 1), rel=0.25)


def test_no_node_comes_first() -> None:
    # The nodes that come last do not get what is left: their mixes are as skewed as the first ones'.
    firsts, lasts = [], []
    for seed in range(10):
        found = mixes(dirichlet_equal(LABELS, 60, 0.1, rng.stream(seed, 0, -1, "test"))).max(axis=1)
        firsts.append(found[:10].mean())
        lasts.append(found[-10:].mean())
    assert np.mean(firsts) == pytest.approx(np.mean(lasts), abs=0.06)


def test_infinite_alpha_is_iid() -> None:
    for alpha in (float("inf"), "inf"):
        parts = make_partition({"kind": "dirichlet_equal", "alpha": alpha}, LABELS, None, 6000, 10, 0)
        assert abs(mixes(parts) - 0.1).max() < 0.05
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_iid_deals_evenly() -> None:
    parts = iid(103, 10, rng.stream(0, 0, -1, "test"))
    assert sorted(map(len, parts)) == [10] * 7 + [11] * 3


def test_natural_nodes_are_groups() -> None:
    groups = np.array([2, 0, 2, 5, 0, 2])
    assert [part.tolist() for part in natural(groups, None, rng.stream(0, 0, -1, "test"))] == [[1, 4], [0, 2, 5], [3]]
    chosen = natural(groups, 2, rng.stream(0, 0, -1, "test"))
    assert_disjoint(chosen, 6, 2)
    assert all(len(set(groups[part])) == 1 for part in chosen)


def test_natural_agrees_with_flwr_datasets() -> None:
    from datasets import Dataset
    from flwr_datasets.partitioner import NaturalIdPartitioner

    groups = np.random.default_rng(0).integers(0, 20, 300)
    theirs = NaturalIdPartitioner("group")
    theirs.dataset = Dataset.from_dict({"group": groups, "index": np.arange(300)})
    ours = natural(groups, None, rng.stream(0, 0, -1, "test"))
    for node, part in enumerate(ours):
        assert part.tolist() == theirs.load_partition(node)["index"][:]


@pytest.mark.parametrize(
    ("config", "nodes", "message"),
    [
        ({"kind": "iid"}, 7000, "num_clients=7000 is more than the 6000"),
        ({"kind": "iid"}, 0, "at least 1"),
        ({"kind": "dirichlet_equal", "alpha": 0}, 5, "alpha=0.0 must be above 0"),
        ({"kind": "dirichlet_equal", "alpha": float("nan")}, 5, "must be above 0"),
        ({"kind": "shards"}, 5, "none of dirichlet_equal"),
        ({"kind": "natural"}, 5, "natural nodes"),
    ],
)
def test_impossible_partitions_say_why(config: dict[str, Any], nodes: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_partition(config, LABELS, None, 6000, nodes, 0)


def test_more_nodes_than_groups() -> None:
    with pytest.raises(ValueError, match="from 1 to the 3 natural nodes"):
        make_partition({"kind": "natural"}, None, np.array([0, 1, 2]), 3, 4, 0)


def test_dirichlet_that_cannot_fill_every_node_says_so() -> None:
    with pytest.raises(ValueError, match="dirichlet_equal"):
        make_partition({"kind": "dirichlet", "alpha": 0.01}, LABELS, None, 6000, 1000, 0)


def test_dirichlet_without_flwr_datasets_names_the_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flwr_datasets.partitioner", None)
    with pytest.raises(ModuleNotFoundError, match="pip install flwr-datasets"):
        make_partition({"kind": "dirichlet", "alpha": 1.0}, LABELS, None, 6000, 10, 0)
