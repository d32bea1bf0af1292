"""Mean Valley: how far one can walk from the average model before the loss doubles (arXiv 2507.20424).

    L_A    = f(x_A)                                          loss of the average on training data, or a sample of it
    u_m    = (x_m - x_A) / ||x_m - x_A||                     one direction for each worker
    beta_m = the distance at which f(x_A + beta_m u_m) reaches kappa L_A
    MV     = mean_m beta_m;   Inverse MV = -MV               wider is larger, sharper is higher

The paper normalizes each component (convolution, linear layer, norm) to Frobenius norm 1 before it measures, so that
models of different scale compare. Here the *coordinates* are normalized: a component's coordinates are its weights
divided by the norm that this component has in ``x_A``, so ``x_A`` has norm 1 in each, and distances and directions
are taken there. The function does not change; rescaling the weights themselves would change the outputs of a net with
biases, residuals or a last layer without a norm, and with them ``L_A``.

The walk is bounded: at most ``max_steps`` steps of ``step``, then ``halvings`` bisections of the last step.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from flsparse.nets.losses import summed_class_loss

Arrays = Mapping[str, np.ndarray]
Loss = Callable[[Arrays], float]


@dataclass(frozen=True)
class Line:
    """A ray from the average through one worker.

    Attributes
    ----------
    origin : Mapping[str, np.ndarray]
        ``x_A``, with the parameters that do not move.
    direction : dict[str, np.ndarray]
        Change of the parameters that move per unit of distance; of length 1 in normalized coordinates.
    length : float
        Distance of the worker in normalized coordinates, above 0.
    """

    origin: Arrays
    direction: dict[str, np.ndarray]
    length: float

    def point(self, distance: float) -> dict[str, np.ndarray]:
        """Return the parameters at a distance from the average, in the average's dtypes."""
        moved = {name: self.origin[name] + distance * d for name, d in self.direction.items()}
        return {name: np.asarray(moved.get(name, x), x.dtype) for name, x in self.origin.items()}


@dataclass(frozen=True)
class Valley:
    """Mean valley of a model, as measured.

    Attributes
    ----------
    average_loss : float
        ``L_A``.
    distances : list[float]
        ``beta_m`` of each worker; where ``reached`` is False the wall is further away than that.
    reached : list[bool]
        Whether the loss came to ``kappa L_A`` within the bound.
    curves : list[list[tuple[float, float]]]
        (distance, loss) of the points walked, for each worker, from 0 on.
    """

    average_loss: float
    distances: list[float]
    reached: list[bool]
    curves: list[list[tuple[float, float]]]

    @property
    def mean_valley(self) -> float:
        """``MV``, a lower bound where a wall was not reached; NaN without workers."""
        return float(np.mean(self.distances)) if self.distances else float("nan")

    @property
    def inverse_mean_valley(self) -> float:
        """``-MV``: higher is sharper."""
        return -self.mean_valley


def component(name: str) -> str:
    """Return the component a parameter belongs to: ``conv1.weight`` and ``conv1.bias`` to ``conv1``."""
    return name.rpartition(".")[0] or name


def component_norms(arrays: Arrays) -> dict[str, float]:
    """Return each component's Frobenius norm, by component; 1 for one that is all zeros."""
    squares: dict[str, float] = {}
    for name, array in arrays.items():
        squares[component(name)] = squares.get(component(name), 0.0) + float(np.sum(array.astype(np.float64) ** 2))
    return {key: float(np.sqrt(square)) or 1.0 for key, square in squares.items()}


def line(average: Arrays, worker: Arrays, names: Iterable[str] | None = None, *, normalize: bool = True) -> Line | None:
    """Return the ray from the average through a worker; None where they are equal.

    Parameters
    ----------
    average, worker : Mapping[str, np.ndarray]
        Parameters by name.
    names : iterable of str, optional
        Walk along these parameters alone, for devices on which the whole vector is too much; default: all.
    normalize : bool (default: True)
        Measure in normalized coordinates; otherwise in the coordinates of the weights.

    Raises
    ------
    ValueError
        A name is no parameter.
    """
    chosen = list(average if names is None else names)
    if unknown := [name for name in chosen if name not in average]:
        raise ValueError(f"{unknown[0]!r} is none of the parameters {', '.join(average)}")
    scales = component_norms(average) if normalize else {}
    difference = {name: worker[name].astype(np.float64) - average[name] for name in chosen}
    squares = (np.sum((d / scales.get(component(name), 1.0)) ** 2) for name, d in difference.items())
    length = float(np.sqrt(sum(squares)))
    if length == 0:
        return None
    return Line(average, {name: d / length for name, d in difference.items()}, length)


def walk(
    loss: Loss, along: Line, average_loss: float, *, kappa: float, step: float, max_steps: int, halvings: int
) -> tuple[float, bool, list[tuple[float, float]]]:
    """Walk until the loss reaches ``kappa`` times the average's; return the distance, whether it did, and the points.

    Between the last two points the wall is bisected ``halvings`` times; a loss that is NaN is a wall.
    """
    wall = kappa * average_loss
    points = [(0.0, average_loss)]
    for count in range(1, max_steps + 1):
        points.append((count * step, loss(along.point(count * step))))
        if not points[-1][1] < wall:
            break
    else:
        return max_steps * step, False, points
    inside, outside = points[-2][0], points[-1][0]
    for _ in range(halvings):
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if loss(along.point(middle)) < wall else (inside, middle)
    return (inside + outside) / 2, True, points


def mean_valley(
    loss: Loss,
    average: Arrays,
    workers: Sequence[Arrays],
    *,
    kappa: float = 2.0,
    step: float = 0.1,
    max_steps: int = 50,
    halvings: int = 6,
    names: Iterable[str] | None = None,
    normalize: bool = True,
) -> Valley:
    """Measure the valley around an average of workers.

    Costs at most ``1 + len(workers) (max_steps + halvings)`` evaluations of the loss.

    Parameters
    ----------
    loss : callable
        Maps parameters to the training loss, above 0 (see :func:`loss_on`).
    average : Mapping[str, np.ndarray]
        ``x_A``: the parameters, without buffers.
    workers : sequence of Mapping[str, np.ndarray]
        ``x_m``; their distance does not matter, only their direction. One that equals the average is left out.
    kappa : float (default: 2.0)
        Above 1: the wall is where the loss is ``kappa`` times the average's.
    step : float (default: 0.1)
        Above 0, in normalized coordinates.
    max_steps, halvings : int (default: 50, 6)
        Bounds of the walk.
    names, normalize
        See :func:`line`.

    Raises
    ------
    ValueError
        A bound is out of range.

    Examples
    --------
    >>> bowl = lambda x: 1.0 + 4.0 * float(x["w"] @ x["w"])  # the wall is at sqrt((kappa - 1) c / a) = 0.5
    >>> found = mean_valley(bowl, {"w": np.zeros(2)}, [{"w": np.array([0.0, 9.0])}], halvings=20)
    >>> round(found.mean_valley, 5)
    0.5
    """
    if kappa <= 1 or step <= 0 or max_steps < 1 or halvings < 0:
        raise ValueError(
            f"kappa={kappa} must be above 1, step={step} above 0, max_steps={max_steps} and halvings={halvings} "
            "at least 1 and 0"
        )
    rays = [ray for worker in workers if (ray := line(average, worker, names, normalize=normalize)) is not None]
    at_average = loss(average)
    found = [
        walk(loss, ray, at_average, kappa=kappa, step=step, max_steps=max_steps, halvings=halvings) for ray in rays
    ]
    return Valley(at_average, [f[0] for f in found], [f[1] for f in found], [f[2] for f in found])


def valley_of_curves(average_loss: float, curves: Sequence[Sequence[float]], *, kappa: float, step: float) -> Valley:
    """Find the walls in losses that were measured at every step, as nodes send them; a wall is interpolated.

    Parameters
    ----------
    average_loss : float
        ``L_A``.
    curves : sequence of sequence of float
        For each worker, the loss at ``step``, ``2 step``, ...
    kappa, step : float
        As for :func:`mean_valley`.
    """
    distances, reached = [], []
    wall = kappa * average_loss
    for losses in curves:
        points = [average_loss, *losses]
        over = next((i for i, loss in enumerate(points) if not loss < wall), None)
        reached.append(over is not None)
        if over is None:
            distances.append((len(points) - 1) * step)
        else:
            rise = points[over] - points[over - 1]
            part = (wall - points[over - 1]) / rise if np.isfinite(rise) and rise > 0 else 1.0
            distances.append((over - 1 + part) * step)
    walked = [[(i * step, loss) for i, loss in enumerate([average_loss, *losses])] for losses in curves]
    return Valley(average_loss, distances, reached, walked)


@contextmanager
def batch_statistics(model: nn.Module) -> Iterator[None]:
    """Evaluate with the statistics of each batch in place of running ones, which stay as they are; no dropout."""
    modes = {module: module.training for module in model.modules()}
    norms = [module for module in modes if isinstance(module, _BatchNorm) and module.track_running_stats]
    model.eval()
    for norm in norms:
        norm.train()
        norm.track_running_stats = False  # neither used nor updated
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
        for module, mode in modes.items():
            module.training = mode


def loss_on(
    model: nn.Module,
    batches: Sequence[tuple[Tensor, Tensor]],
    summed: Callable[[Tensor, Tensor], Tensor] = summed_class_loss,
) -> Loss:
    """Return the mean loss of a module on some batches as a function of its parameters.

    Batch norm takes the statistics of each batch: running ones belong to one point of the walk alone.

    Parameters
    ----------
    model : nn.Module
        Its parameters are overwritten by every call.
    batches : sequence of (Tensor, Tensor)
        Inputs as the model takes them, targets as the loss does; at least one, the same at every point.
    summed : callable
        Sum of the loss over a batch, from outputs and targets; by default cross-entropy.
    """
    parameters = dict(model.named_parameters())

    def loss(arrays: Arrays) -> float:
        total = torch.zeros((), dtype=torch.float64)
        count = 0
        with torch.no_grad(), batch_statistics(model):
            for name, parameter in parameters.items():
                parameter.copy_(torch.from_numpy(np.array(arrays[name])))
            for inputs, targets in batches:
                total += summed(model(inputs), targets).double().cpu()
                count += targets.numel()
        return float(total) / count

    return loss
