"""The steps of torch's own SGD, to the bit, in a process that never imports torch's compiler."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from flsparse.nets.sgd import SGD

STEPS = """
import sys, torch
from flsparse.nets.sgd import SGD
p = torch.nn.Parameter(torch.ones(3))
optimizer = SGD([p], lr=0.1, momentum=0.9)
for _ in range(2):
    optimizer.zero_grad(set_to_none=True)
    p.sum().backward()
    optimizer.step()
print("torch._dynamo" in sys.modules)
"""


def trained(kind: type[torch.optim.SGD], momentum: float, weight_decay: float) -> tuple[nn.Module, torch.optim.SGD]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 3), nn.Linear(3, 3))
        optimizer = kind(model.parameters(), lr=0.3, momentum=momentum, weight_decay=weight_decay)
        for _ in range(4):
            optimizer.zero_grad()
            model[:3](torch.randn(6, 7)).square().sum().backward()  # the last layer gets no gradient
            optimizer.step()
    return model, optimizer


@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_steps_and_state_are_those_of_torch(momentum: float, weight_decay: float) -> None:
    (mine, own), (other, torchs) = (trained(kind, momentum, weight_decay) for kind in (SGD, torch.optim.SGD))
    for p, q in zip(mine.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)
    own_state, torch_state = own.state_dict(), torchs.state_dict()
    assert own_state["param_groups"] == torch_state["param_groups"]
    assert own_state["state"].keys() == torch_state["state"].keys()
    for at, state in own_state["state"].items():
        assert torch.equal(state["momentum_buffer"], torch_state["state"][at]["momentum_buffer"])


def test_momentum_of_another_round_goes_on() -> None:
    p = nn.Parameter(torch.zeros(2))
    optimizer = SGD([p], lr=1.0, momentum=0.5)
    optimizer.state[p]["momentum_buffer"] = torch.tensor([2.0, 0.0])
    p.grad = torch.ones(2)
    optimizer.step()
    assert p.tolist() == [-2.0, -1.0]


def test_a_closure_gives_the_loss() -> None:
    p = nn.Parameter(torch.tensor([3.0]))
    optimizer = SGD([p], lr=0.5)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 9.0
    assert p.tolist() == [0.0]


def test_no_compiler_is_imported() -> None:
    done = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "False"
