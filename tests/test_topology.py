"""Graphs and mixing matrices, against numbers worked out by hand."""

import numpy as np
import pytest

from flsparse.topology import Topology, check_mixing, erdos_renyi, is_connected, make_topology, metropolis, ring, torus


@pytest.mark.parametrize("nodes", [1, 2, 3, 4, 9, 16])
@pytest.mark.parametrize("name", ["ring", "complete", "star"])
def test_metropolis_weights_are_symmetric_and_doubly_stochastic(name, nodes):
    topology = make_topology({"name": name}, nodes, seed=0)
    np.testing.assert_allclose(topology.weights.sum(axis=0), 1)
    np.testing.assert_array_equal(topology.weights, topology.weights.T)
    assert (np.diag(topology.weights) > 0).all()


def test_degrees():
    assert make_topology({"name": "ring"}, 5, 0).neighbors(0) == [1, 4]
    assert make_topology({"name": "torus"}, 9, 0).neighbors(4) == [1, 3, 5, 7]
    assert make_topology({"name": "torus"}, 6, 0).neighbors(0) == [1, 2, 3]  # two rows: up is down
    assert make_topology({"name": "complete"}, 4, 0).neighbors(2) == [0, 1, 3]
    assert make_topology({"name": "star"}, 4, 0).neighbors(3) == [0]


def test_spectral_gaps():
    assert make_topology({"name": "complete"}, 7, 0).gap == pytest.approx(1)
    eigenvalue = 1 / 3 + 2 / 3 * np.cos(2 * np.pi / 16)  # of the circulant (1/3, 1/3, 0, ..., 1/3)
    assert make_topology({"name": "ring"}, 16, 0).gap == pytest.approx(1 - eigenvalue)
    assert make_topology({"name": "torus"}, 16, 0).gap == pytest.approx(0.4)
    assert make_topology({"name": "star"}, 1, 0).gap == 1


def test_erdos_renyi_follows_the_seed_and_is_connected():
    first, second, other = (erdos_renyi(12, seed, probability=0.25) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, second)
    assert (first != other).any()
    assert is_connected(first)
    assert not first.diagonal().any()
    with pytest.raises(ValueError, match="take more than log"):
        erdos_renyi(50, 0, probability=0.001)
    with pytest.raises(ValueError, match=r"probability=1.5 is not in"):
        make_topology({"name": "erdos_renyi", "probability": 1.5}, 4, 0)


def test_given_edges_and_weights():
    path = make_topology({"name": "given", "edges": [[0, 1], [1, 2]], "weights": None}, 3, 0)
    np.testing.assert_allclose(path.weights, [[2 / 3, 1 / 3, 0], [1 / 3, 1 / 3, 1 / 3], [0, 1 / 3, 2 / 3]])
    half = [[0.5, 0.5], [0.5, 0.5]]
    assert make_topology({"name": "given", "weights": half}, 2, 0).gap == pytest.approx(1)


@pytest.mark.parametrize(
    ("weights", "what"),
    [
        ([[0.5, 0.5], [0.4, 0.6]], "symmetric"),
        ([[0.5, 0.4], [0.4, 0.5]], "sums to"),
        ([[1.5, -0.5], [-0.5, 1.5]], "0 or more"),
        ([[1.0, 0.0], [0.0, 1.0]], "falls into parts"),
        ([[0.0, 1.0], [1.0, 0.0]], "does not mix"),
        ([[float("nan"), 0.0], [0.0, 1.0]], "0 or more"),
    ],
)
def test_a_matrix_that_does_not_mix_is_refused(weights, what):
    with pytest.raises(ValueError, match=what):
        Topology("given", np.array(weights))
    with pytest.raises(ValueError, match="square"):
        check_mixing(np.ones((2, 3)))


@pytest.mark.parametrize(
    ("config", "what"),
    [
        ({"name": "tours"}, "none of ring"),
        ({"name": "ring", "probability": 0.5}, "not a setting of ring"),
        ({"name": "given"}, "needs topology.edges"),
        ({"name": "given", "edges": [[0, 0]]}, "not a pair of different nodes"),
        (
            {"name": "given", "edges": [[0, 1]]},
            "edges reach 2 of num_clients=4 nodes from node 0, but not node 2",
        ),
        ({"name": "given", "weights": np.eye(4).tolist()}, "no path leads from node 0 to node 1"),
        ({"name": "given", "weights": [[1.0]]}, "1 rows, but there are 4 nodes"),
        ({"name": "given", "weights": [[1.0], [1.0, 2.0]]}, "not square"),
    ],
)
def test_bad_configurations_are_refused(config, what):
    with pytest.raises(ValueError, match=what):
        make_topology(config, 4, 0)


def test_a_torus_of_a_prime_is_refused():
    with pytest.raises(ValueError, match="take 8 nodes"):
        torus(7)


def test_metropolis_of_a_ring_mixes_at_the_rate_of_its_gap():
    topology = Topology("ring", metropolis(ring(8)))
    x = np.arange(8.0)
    error = np.linalg.norm(x - x.mean())
    x = topology.weights @ x
    assert np.linalg.norm(x - x.mean()) <= (1 - topology.gap) * error + 1e-12
    assert x.mean() == pytest.approx(3.5)


def test_draw():
    networkx = pytest.importorskip("networkx")
    graph = make_topology({"name": "torus"}, 9, 0).draw()
    assert isinstance(graph, networkx.Graph)
    assert graph.number_of_edges() == 18
    assert graph.edges[0, 1]["weight"] == pytest.approx(0.2)
