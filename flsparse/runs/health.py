"""Signs that a model has died or learns nothing, whatever its bytes: plain functions of weights and scores.

A sign is one line with the mend, without numbers that change from round to round: it is said once while it stands.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

HANDFUL = 5  # weights that are left of a nearly empty layer, at most ...
_NEARLY = 0.01  # ... and at most this fraction of it: a layer of 20 weights that keeps one is as sparse as was asked
_STANDING = 3  # evaluations in a row: many a good run begins with one answer to everything
_CLOSE = 0.01  # relative
_LITTLE = 0.1  # of the errors: a net may rank classes well before its loss falls
_NAMED = 3  # layers in a line


@dataclass(frozen=True)
class Guess:
    """Scores of a model that knows how frequent the classes are, and nothing else.

    Attributes
    ----------
    num_classes : int
        Classes to choose from.
    accuracy : float
        Share of the largest class, in (0, 1].
    loss : float
        Entropy of the classes in nats, in [0, ln(num_classes)].

    Examples
    --------
    >>> Guess.of(np.array([0, 0, 0, 1]), 10)
    Guess(num_classes=10, accuracy=0.75, loss=0.5623351446188083)
    """

    num_classes: int
    accuracy: float
    loss: float

    @classmethod
    def of(cls, targets: npt.NDArray[np.integer[Any]], num_classes: int) -> "Guess":
        """Measure targets, integers of any shape and at least one, in [0, num_classes)."""
        shares = np.bincount(targets.reshape(-1)) / targets.size
        present = shares[shares > 0]
        return cls(num_classes, float(present.max()), abs(float(-(present * np.log(present)).sum())))


def dead_layers(arrays: Mapping[str, npt.NDArray[Any]], names: Sequence[str], mend: str) -> list[str]:
    """Return a line about the layers whose weights are all zero, and one about those with a handful left.

    Parameters
    ----------
    arrays : Mapping[str, ndarray]
        Weights by name, of any shape.
    names : Sequence[str]
        The layers to look at.
    mend : str
        What the user can do about it.

    Examples
    --------
    >>> dead_layers({"fc1.weight": np.zeros((4, 4))}, ["fc1.weight"], "lower strategy.sparsity")
    ["layer 'fc1.weight' is empty: lower strategy.sparsity"]
    """
    left = {name: int(np.count_nonzero(arrays[name])) for name in names if arrays[name].size}
    empty = [name for name, count in left.items() if not count]
    nearly = [name for name, count in left.items() if 0 < count <= min(HANDFUL, _NEARLY * arrays[name].size)]
    return [
        f"{_layers(found)} {what}: {mend}"
        for found, what in ((empty, "empty"), (nearly, f"all but empty, with {HANDFUL} weights or fewer"))
        if found
    ]


def guessing(accuracy: float, loss: float, prediction_share: float, guess: Guess, mend: str) -> list[str]:
    """Return a line for each sign that a model does no better than guessing, or worse.

    Nearly all samples get one answer. The accuracy is that of the largest class: it spares less than a hundredth of the
    errors of always answering that. It spares less than a tenth of them, and the loss is within a hundredth of the
    classes' entropy or of ``ln(num_classes)``. The loss is above twice the latter, which is divergence.

    Parameters
    ----------
    accuracy : float
        In [0, 1].
    loss : float
        Mean cross-entropy in nats, or what an overflow left of it.
    prediction_share : float
        Share of the samples that get the most frequent answer, in (0, 1].
    guess : Guess
        Of the same samples.
    mend : str
        What the user can do about a model that has learned nothing.
    """
    errors, chance = 1 - guess.accuracy, math.log(guess.num_classes)
    mend = mend if "client.lr" in mend else f"{mend} or client.lr"
    signs = []
    if errors and 1 - prediction_share <= _CLOSE * errors:
        signs.append(f"nearly all samples get the same answer: {mend}")
    if errors and 1 - accuracy >= (1 - _CLOSE) * errors:
        signs.append(f"the accuracy is that of answering the largest class, {100 * guess.accuracy:.1f} %: {mend}")
    if not loss <= 2 * chance:
        signs.append(f"the loss is above {2 * chance:.2f}, twice that of guessing, training diverges: lower client.lr")
    elif 1 - accuracy >= (1 - _LITTLE) * errors and any(
        abs(loss - level) <= _CLOSE * level for level in (chance, guess.loss)
    ):
        signs.append(f"the loss stands at that of guessing, ln({guess.num_classes}) = {chance:.2f}: {mend}")
    return signs


def blind(loss: float, mean_loss: float, mend: str) -> list[str]:
    """Return a line where a loss is not below that of one answer to everything, the best there is.

    Parameters
    ----------
    loss, mean_loss : float
        Of the model, and of always answering the targets' mean, at least 0.
    mend : str
        What the user can do about a model that has learned nothing.

    Examples
    --------
    >>> blind(2.1, 2.0, "lower client.lr")
    ['the loss is that of always answering the mean, 2, or worse: lower client.lr']
    """
    if mean_loss <= 0 or loss < (1 - _CLOSE) * mean_loss:
        return []
    return [f"the loss is that of always answering the mean, {mean_loss:.3g}, or worse: {mend}"]


def layer_mend(strategy: Mapping[str, Any]) -> str:
    """Return what keeps weights in a layer, by the settings of the strategy.

    >>> layer_mend({"name": "topk", "sparsity": 0.95, "scope": "global"})
    'lower strategy.sparsity or set strategy.scope=lamp'
    """
    if strategy["name"] == "malcom_psgd":
        return "lower strategy.mu"
    if strategy["name"] == "split_ms" or not strategy.get("sparsity"):  # split learning's is of the activations
        return "lower client.lr"
    return "lower strategy.sparsity" + " or set strategy.scope=lamp" * (strategy.get("scope") == "global")


def _layers(names: Sequence[str]) -> str:
    named = ", ".join(repr(name) for name in names[:_NAMED])
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"layer {named} is" if len(names) == 1 else f"layers {named}{more} are"


class Health:
    """Follows a run: which signs stand.

    Parameters
    ----------
    guess : Guess or float or None
        Of the evaluation data; where the targets are no classes, the loss of always answering their mean, None where
        that says nothing.
    strategy : Mapping
        The strategy's settings, which name the mend.

    Attributes
    ----------
    warnings : list[str]
        What is wrong with the model after the last round: layers at once, scores from the third evaluation in a row,
        and in the run's last round from the first.
    """

    def __init__(self, guess: Guess | float | None, strategy: Mapping[str, Any]) -> None:
        self.warnings: list[str] = []
        self._guess = guess
        self._mend = layer_mend(strategy)
        self._counts: dict[str, int] = {}  # evaluations in a row that show a sign

    def examine(
        self,
        row: Mapping[str, Any],
        arrays: Mapping[str, npt.NDArray[Any]],
        names: Sequence[str],
        *,
        is_last: bool,
    ) -> list[str]:
        """Return the warnings after a round, from its row and its model; scores count where it was evaluated."""
        if self._guess is not None and row["loss"] is not None:
            mend = self._mend.partition(" or ")[0]
            if isinstance(self._guess, Guess):
                signs = guessing(row["accuracy"], row["loss"], row["prediction_share"], self._guess, mend)
            else:
                signs = blind(row["loss"], self._guess, mend)
            self._counts = {sign: self._counts.get(sign, 0) + 1 for sign in signs}
        stand = [sign for sign, count in self._counts.items() if is_last or count >= _STANDING]
        self.warnings = dead_layers(arrays, names, self._mend) + stand
        return self.warnings

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs, as plain values."""
        return {"warnings": self.warnings, "counts": self._counts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of :meth:`state_dict`."""
        self.warnings, self._counts = list(state["warnings"]), dict(state["counts"])
