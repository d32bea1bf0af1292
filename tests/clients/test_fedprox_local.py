"""FedProx's step on the device, by hand."""

import numpy as np
import torch
from flwr.app import Context, RecordDict
from torch import nn

from flsparse.clients import Fit, NodeState
from flsparse.clients.fedprox import FedProxLocal
from flsparse.nets.arrays import state_arrays


def test_the_gradient_points_back_to_the_received_weights() -> None:
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 2.0]]))
    received = {"weight": np.array([[0.5, 4.0]], np.float32)}
    state = NodeState(Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={}))
    fit = Fit(model, torch.optim.SGD(model.parameters(), lr=0.5), received, 1, 1, 0, 0, {}, state)
    model.weight.grad = torch.tensor([[10.0, 20.0]])
    method = FedProxLocal(mu=0.2)
    method.after_backward(fit)
    np.testing.assert_allclose(model.weight.grad, [[10 + 0.2 * 0.5, 20 - 0.2 * 2.0]], rtol=1e-6)
    fit.optimizer.step()
    np.testing.assert_allclose(state_arrays(model)["weight"], [[1 - 0.5 * 10.1, 2 - 0.5 * 19.6]], rtol=1e-6)
