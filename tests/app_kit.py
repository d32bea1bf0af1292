"""What the tests of the application share: a console script in a folder of its own, and what a checkpoint holds."""

from collections.abc import Callable
from typing import Any

from flsparse.nets.arrays import state_arrays
from flsparse.runtime.making import make_strategy
from flsparse.sparsity import prunable_names
from flsparse.tasks import build_task

Run = Callable[..., int]


def initial_state(cfg: dict[str, Any]) -> dict[str, Any]:
    """Return what a checkpoint holds of the model and the strategy, before the first round."""
    plain = build_task(cfg).model()
    strategy = make_strategy(cfg, prunable_names(plain))
    return {"arrays": state_arrays(strategy.prepare(plain)), "strategy": strategy.state_dict()}
