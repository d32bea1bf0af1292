"""Graphs and mixing matrices of decentralized training.

A graph is a symmetric boolean adjacency matrix without loops, a mixing matrix W a symmetric, doubly stochastic one that
is zero where the graph has no edge. Metropolis weights need nothing but the neighbors' degrees::

    W_ij = 1 / (1 + max(deg_i, deg_j))   for an edge,      W_ii = 1 - sum_j W_ij

With eigenvalues 1 = l_1 > |l_2| >= ... the *spectral gap* is ``1 - |l_2|``: one round of gossip leaves at most the
fraction ``1 - gap`` of the nodes' disagreement.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flsparse import rng
from flsparse.configs import build

Matrix = NDArray[np.float64]
Adjacency = NDArray[np.bool_]
_TOLERANCE = 1e-9
_DRAWS = 1000


def ring(nodes: int) -> Adjacency:
    """Ring: each node and the next are neighbors; two nodes share one edge, one has none."""
    import networkx as nx

    return _adjacency(nx.cycle_graph(nodes))


def torus(nodes: int) -> Adjacency:
    """Torus: a grid as square as the node count allows, wrapped at its borders; four neighbors, fewer if it is thin.

    Raises
    ------
    ValueError
        The number of nodes is a prime above 3: its only grid is a ring.
    """
    import networkx as nx

    rows = max(r for r in range(1, int(nodes**0.5) + 1) if nodes % r == 0)
    if rows == 1 and nodes > 3:
        raise ValueError(f"a torus of {nodes} nodes would be a ring: take {nodes + 1} nodes, or topology=ring")
    return _adjacency(nx.grid_2d_graph(rows, nodes // rows, periodic=True))


def complete(nodes: int) -> Adjacency:
    """Complete graph: an edge between every two nodes."""
    import networkx as nx

    return _adjacency(nx.complete_graph(nodes))


def star(nodes: int) -> Adjacency:
    """Star: an edge from node 0 to every other node."""
    import networkx as nx

    return _adjacency(nx.star_graph(nodes - 1))


def erdos_renyi(nodes: int, seed: int, *, probability: float = 0.5) -> Adjacency:
    """Erdos-Renyi graph: each edge with this probability; drawn again until the graph is connected.

    Parameters
    ----------
    nodes : int
    seed : int
        The run's seed.
    probability : float (default: 0.5)
        In (0, 1].

    Raises
    ------
    ValueError
        The probability is out of range, or so small that no draw is connected.
    """
    if not 0 < probability <= 1:
        raise ValueError(f"probability={probability} is not in (0, 1]")
    stream = rng.stream(seed, 0, -1, "topology")
    for _ in range(_DRAWS):
        adjacency: Adjacency = np.triu(stream.random((nodes, nodes)) < probability, 1)
        adjacency = adjacency | adjacency.T
        if is_connected(adjacency):
            return adjacency
    raise ValueError(
        f"probability={probability} gave no connected graph of {nodes} nodes in {_DRAWS} draws; "
        f"take more than log(n)/n = {np.log(nodes) / nodes:.2f}"
    )


def from_edges(nodes: int, edges: Sequence[Sequence[int]]) -> Adjacency:
    """Return the graph with these edges, pairs of partition ids.

    Raises
    ------
    ValueError
        An edge is no pair of two different nodes that exist.
    """
    for edge in edges:
        if len(edge) != 2 or edge[0] == edge[1] or not all(0 <= node < nodes for node in edge):
            raise ValueError(f"topology.edges: {list(edge)} is not a pair of different nodes of 0..{nodes - 1}")
    adjacency: Adjacency = np.zeros((nodes, nodes), bool)
    for i, j in edges:
        adjacency[i, j] = adjacency[j, i] = True
    return adjacency


def is_connected(adjacency: Adjacency) -> bool:
    """Tell whether every node can be reached from every other."""
    import networkx as nx

    return bool(nx.is_connected(nx.from_numpy_array(adjacency)))


def _beyond_reach(adjacency: Adjacency) -> set[int]:
    """Return the nodes to which no path leads from node 0."""
    import networkx as nx

    reached: set[int] = nx.node_connected_component(nx.from_numpy_array(adjacency), 0)
    return set(range(len(adjacency))) - reached


def metropolis(adjacency: Adjacency) -> Matrix:
    """Return the Metropolis weights of a graph.

    Examples
    --------
    >>> metropolis(ring(4))[0].round(3).tolist()
    [0.333, 0.333, 0.0, 0.333]
    """
    degree = adjacency.sum(axis=1)
    weights: Matrix = np.where(adjacency, 1.0 / (1 + np.maximum.outer(degree, degree)), 0.0)
    np.fill_diagonal(weights, 1.0 - weights.sum(axis=1))
    return weights


def check_mixing(weights: Matrix) -> None:
    """Check that a matrix mixes: square, symmetric, doubly stochastic, one connected graph, a spectral gap above 0.

    Raises
    ------
    ValueError
        The matrix does not mix; the message names the first row or entry that is wrong.
    """
    if weights.ndim != 2 or weights.shape[0] != weights.shape[1]:
        raise ValueError(f"a mixing matrix is square, this one has shape {weights.shape}")
    if not np.isfinite(weights).all() or (weights < -_TOLERANCE).any():
        i, j = np.argwhere(~np.isfinite(weights) | (weights < -_TOLERANCE))[0]
        raise ValueError(f"W[{i}][{j}]={weights[i, j]}: the entries of a mixing matrix are 0 or more")
    if (wrong := np.argwhere(np.abs(weights - weights.T) > _TOLERANCE)).size:
        i, j = wrong[0]
        raise ValueError(f"W[{i}][{j}]={weights[i, j]}, but W[{j}][{i}]={weights[j, i]}: it must be symmetric")
    sums = weights.sum(axis=1)
    if (off := np.flatnonzero(np.abs(sums - 1) > _TOLERANCE)).size:
        raise ValueError(f"row {off[0]} of the mixing matrix sums to {sums[off[0]]}, not to 1")
    if not is_connected(_edges_of(weights)):
        away = min(_beyond_reach(_edges_of(weights)))
        raise ValueError(
            f"the graph of the mixing matrix falls into parts that never hear of each other: no path leads from node 0 "
            f"to node {away}; give W[i][{away}] a weight, i a node that is reached"
        )
    if spectral_gap(weights) <= _TOLERANCE:  # connected, so -1 is an eigenvalue: two sides that only swap their models
        raise ValueError(
            "the graph does not mix: the spectral gap of W is 0, not above it; give a node some W[i][i] > 0"
        )


def spectral_gap(weights: Matrix) -> float:
    """Return ``1 - |l_2|`` of a mixing matrix, in [0, 1]; 1 for a single node."""
    if len(weights) == 1:
        return 1.0
    moduli = np.sort(np.abs(np.linalg.eigvalsh(weights)))
    return float(max(0.0, 1.0 - moduli[-2]))


@dataclass(frozen=True)
class Topology:
    """A graph of nodes 0..n-1 and its mixing matrix, checked.

    Parameters
    ----------
    name : str
        A key of :data:`GRAPHS`.
    weights : np.ndarray
        Shape (n, n), float64: W.

    Raises
    ------
    ValueError
        See :func:`check_mixing`.
    """

    name: str
    weights: Matrix

    def __post_init__(self) -> None:
        check_mixing(self.weights)

    @property
    def nodes(self) -> int:
        """Number of nodes."""
        return len(self.weights)

    @cached_property
    def adjacency(self) -> Adjacency:
        """Shape (n, n), bool: where W has an edge."""
        return _edges_of(self.weights)

    @cached_property
    def gap(self) -> float:
        """The spectral gap, in (0, 1]."""
        return spectral_gap(self.weights)

    def neighbors(self, node: int) -> list[int]:
        """Return a node's neighbors, ascending, without itself."""
        return [int(j) for j in np.flatnonzero(self.adjacency[node])]

    def draw(self) -> Any:
        """Return the graph as a ``networkx.Graph`` with edge attribute ``weight``, for ``networkx.draw``."""
        import networkx as nx

        graph = nx.Graph()
        graph.add_nodes_from(range(self.nodes))
        graph.add_weighted_edges_from(
            (i, j, float(self.weights[i, j])) for i in range(self.nodes) for j in self.neighbors(i) if i < j
        )
        return graph


def make_topology(config: Mapping[str, Any], nodes: int, seed: int) -> Topology:
    """Build the topology of a configuration.

    Parameters
    ----------
    config : Mapping
        ``name``, a key of :data:`GRAPHS`. ``erdos_renyi`` takes ``probability``; ``given`` takes ``edges`` (pairs of
        partition ids) or ``weights`` (the rows of W). Other graphs take nothing.
    nodes : int
        Number of nodes, at least 1.
    seed : int
        The run's seed; Erdos-Renyi graphs follow it.

    Raises
    ------
    ValueError
        The name or a setting is unknown, or the graph is not connected, or the matrix does not mix.

    Examples
    --------
    >>> make_topology({"name": "torus"}, 16, seed=0).neighbors(0)
    [1, 3, 4, 12]
    """
    settings = dict(config)
    name = settings.pop("name", None)
    found = build(GRAPHS, name, settings, what="topology", offered={"nodes": nodes, "seed": seed})
    return Topology(str(name), metropolis(found) if found.dtype == np.bool_ else found)


def given(
    nodes: int, *, edges: Sequence[Sequence[int]] | None = None, weights: Sequence[Sequence[float]] | None = None
) -> Adjacency | Matrix:
    """Return the graph of given edges, or the mixing matrix of given rows; ValueError unless one of them is set."""
    if edges is not None and weights is None:
        adjacency = from_edges(nodes, edges)
        if not is_connected(adjacency):
            away = _beyond_reach(adjacency)
            raise ValueError(
                f"topology.edges reach {nodes - len(away)} of num_clients={nodes} nodes from node 0, but not node "
                f"{min(away)}: add edges that reach all (topology.edges=[[0,1],[1,2],...]), or set num_clients to fit"
            )
        return adjacency
    if weights is None or edges is not None:
        raise ValueError("topology=given needs topology.edges, pairs of nodes, or topology.weights, the rows of W")
    if any(len(row) != len(weights) for row in weights):
        raise ValueError("topology.weights is not square: as many rows as columns")
    if len(weights) != nodes:
        raise ValueError(f"topology.weights has {len(weights)} rows, but there are {nodes} nodes (num_clients)")
    return np.array(weights, np.float64)


GRAPHS: dict[str, Callable[..., NDArray[Any]]] = {
    "ring": ring,
    "torus": torus,
    "complete": complete,
    "star": star,
    "erdos_renyi": erdos_renyi,
    "given": given,
}


def _edges_of(weights: Matrix) -> Adjacency:
    edges: Adjacency = np.abs(weights) > _TOLERANCE
    np.fill_diagonal(edges, False)
    return edges


def _adjacency(graph: Any) -> Adjacency:
    """Return the matrix of a ``networkx.Graph``, nodes in its own order, without loops."""
    import networkx as nx

    adjacency: Adjacency = nx.to_numpy_array(graph) > 0
    np.fill_diagonal(adjacency, False)
    return adjacency
