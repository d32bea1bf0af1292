"""Signs of a model that has died or learns nothing: each on its own, and none of a model that learns."""

import math
from typing import Any

import numpy as np
import pytest

from flsparse.runs.health import Guess, Health, dead_layers, guessing, layer_mend

EVEN = Guess.of(np.repeat(np.arange(10), 36), 10)
SKEWED = Guess.of(np.array([0] * 95 + [1] * 5), 2)
GOOD: dict[str, Any] = {"accuracy": 0.9, "loss": 0.4, "prediction_share": 0.12}
SIGNS = {
    "one answer": ({"prediction_share": 1.0}, "same answer"),
    "largest class": ({"accuracy": 0.1}, "largest class, 10.0 %"),
    "less than the largest class": ({"accuracy": 0.03}, "largest class"),
    "uniform loss": ({"loss": 2.29, "accuracy": 0.15}, "ln(10) = 2.30"),
    "divergence": ({"loss": 4.7}, "above 4.61"),
    "overflow": ({"loss": math.inf}, "diverges"),
    "not a number": ({"loss": math.nan}, "diverges"),
}


def kept(count: int, size: int = 640) -> np.ndarray:
    layer = np.zeros(size, np.float32)
    layer[:count] = 0.1
    return layer.reshape(10, -1)


def warnings(health: Health, *, layer: int = 64, is_last: bool = False, **scores: Any) -> list[str]:
    return health.examine(GOOD | scores, {"fc.weight": kept(layer)}, ["fc.weight"], is_last=is_last)


def health(**strategy: Any) -> Health:
    return Health(EVEN, {"name": "sparsyfed", "sparsity": 0.95, "scope": "global"} | strategy)


def test_a_guess_knows_the_classes_frequencies() -> None:
    assert (EVEN.accuracy, EVEN.loss) == pytest.approx((0.1, math.log(10)))
    text = Guess.of(np.array([[3, 3], [3, 5]]), 80)
    assert (text.accuracy, text.loss) == pytest.approx((0.75, 0.5623), abs=1e-4)
    assert Guess.of(np.array([7, 7]), 10) == Guess(10, 1.0, 0.0)


def test_empty_and_nearly_empty_layers_are_named() -> None:
    arrays = {"a": kept(0), "b": kept(5), "c": kept(6), "d": kept(1, 20), "e": kept(0, 0)}
    assert dead_layers(arrays, list(arrays), "mend it") == [
        "layer 'a' is empty: mend it",
        "layer 'b' is all but empty, with 5 weights or fewer: mend it",
    ]
    many = {f"layer{i}": kept(0) for i in range(5)}
    assert dead_layers(many, list(many), "x") == ["layers 'layer0', 'layer1', 'layer2' and 2 more are empty: x"]


@pytest.mark.parametrize(("change", "said"), SIGNS.values(), ids=SIGNS)
def test_each_sign_is_found_alone(change: dict[str, float], said: str) -> None:
    (sign,) = guessing(**GOOD | change, guess=EVEN, mend="lower strategy.sparsity")
    assert said in sign
    assert "client.lr" in sign


def test_a_model_that_learns_shows_no_sign() -> None:
    assert guessing(**GOOD, guess=EVEN, mend="x") == []
    assert guessing(accuracy=0.2, loss=2.25, prediction_share=0.9, guess=EVEN, mend="x") == []
    assert guessing(accuracy=0.4, loss=2.3, prediction_share=0.3, guess=EVEN, mend="x") == []  # ranks them already


def test_frequent_classes_are_no_sign_by_themselves() -> None:
    """Of 95 samples in 100 one answer is right; who says 96 knows more than that."""
    assert guessing(accuracy=0.97, loss=0.1, prediction_share=0.96, guess=SKEWED, mend="x") == []
    found = guessing(accuracy=0.95, loss=SKEWED.loss, prediction_share=1.0, guess=SKEWED, mend="x")
    assert [sign.partition(":")[0][:12] for sign in found] == ["nearly all s", "the accuracy", "the loss sta"]
    one_class = Guess.of(np.array([7, 7]), 10)
    assert guessing(accuracy=1.0, loss=0.1, prediction_share=1.0, guess=one_class, mend="x") == []


def test_scores_stand_from_the_third_evaluation_in_a_row() -> None:
    seen = health()
    bad: dict[str, Any] = {"accuracy": 0.1}
    rounds = (bad, bad, GOOD, bad, bad, bad, GOOD)
    assert [len(warnings(seen, **scores)) for scores in rounds] == [0, 0, 0, 0, 0, 1, 0]


def test_rounds_without_an_evaluation_neither_add_nor_break() -> None:
    seen = health()
    bad: dict[str, Any] = {"accuracy": 0.1}
    skipped = {"accuracy": None, "loss": None, "prediction_share": None}
    assert [len(warnings(seen, **scores)) for scores in (bad, skipped, bad, skipped, bad, skipped)] == [0] * 4 + [1] * 2


def test_the_last_round_and_layers_are_told_at_once() -> None:
    assert len(warnings(health(), is_last=True, accuracy=0.1)) == 1
    assert warnings(health(), layer=0) == [
        "layer 'fc.weight' is empty: lower strategy.sparsity or set strategy.scope=lamp"
    ]


def test_what_stands_outlives_a_stop() -> None:
    stopped, resumed = health(), health()
    for _ in range(2):
        warnings(stopped, accuracy=0.1)
    resumed.load_state_dict(stopped.state_dict())
    assert len(warnings(resumed, accuracy=0.1)) == 1
    again = health()
    again.load_state_dict(resumed.state_dict())
    assert again.warnings == resumed.warnings


@pytest.mark.parametrize(
    ("strategy", "mend"),
    [
        ({"name": "topk", "sparsity": 0.9, "scope": "layer"}, "lower strategy.sparsity"),
        ({"name": "dppf", "sparsity": 0.9}, "lower strategy.sparsity"),
        ({"name": "dppf", "sparsity": 0.0}, "lower client.lr"),
        ({"name": "malcom_psgd", "mu": 1e-3}, "lower strategy.mu"),
        ({"name": "fedprox", "mu": 0.1}, "lower client.lr"),
        ({"name": "split_ms", "sparsity": 0.99}, "lower client.lr"),
    ],
)
def test_the_mend_is_a_setting_of_the_strategy(strategy: dict[str, Any], mend: str) -> None:
    assert layer_mend(strategy) == mend
