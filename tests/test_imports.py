"""What an import costs: the codec needs neither torch nor Flower, and nothing heavy is loaded before it is used."""

import subprocess
import sys
from pathlib import Path

import pytest


def loaded_by(statement: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter has after a statement."""
    script = f"import sys\n{statement}\nprint('\\n'.join({{name.partition('.')[0] for name in sys.modules}}))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    return set(result.stdout.split())


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import flsparse", {"torch", "torchvision", "flwr", "hydra", "numpy"}),
        ("import flsparse.codec", {"torch", "torchvision", "flwr", "hydra", "rich"}),
        ("import flsparse.metering.ledger", {"torch", "torchvision", "flwr", "hydra"}),
        ("import flsparse.app", {"numpy", "rich", "hydra", "torch", "torchvision", "flwr", "matplotlib", "ray"}),
        ("import flsparse.app.command", {"torch", "torchvision", "flwr", "matplotlib", "ray"}),
        ("import flsparse.strategies, flsparse.clients", {"torchvision", "hydra", "matplotlib", "ray", "sklearn"}),
        ("from flsparse.tasks.datasets import digits; digits()", {"torchvision", "sklearn", "scipy"}),
        ("import flsparse.tasks, flsparse.runtime", {"torchvision", "hydra", "matplotlib", "ray", "flwr_datasets"}),
    ],
)
def test_heavy_modules_are_not_loaded(statement: str, absent: set[str]) -> None:
    assert loaded_by(statement) & absent == set()


def test_a_run_waits_for_nothing_that_it_does_not_use(tmp_path: Path) -> None:
    run = ["num_clients=2", "num_rounds=1", f"output_dir={tmp_path / 'run'}"]
    script = f"""
import sys
from flsparse.app import main
sys.argv[1:] = {run}
try:
    main()
finally:
    print(*sys.modules, sep="\\n")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=240)
    loaded = set(done.stdout.split())
    assert "flsparse.tasks.training" in loaded
    assert loaded & {"torch._dynamo", "sklearn", "scipy", "sympy", "pandas", "matplotlib", "torchmetrics"} == set()
