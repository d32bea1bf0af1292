"""The next-character LSTM of LEAF and of McMahan et al. (2017)."""

import torch
from torch import Tensor, nn


class _LinearLSTM(nn.Module):
    """One LSTM layer out of two ``nn.Linear``, so that its weights are sparsified as linear layers are.

    Gates stand in the order of ``nn.LSTM`` (input, forget, cell, output), with one bias in place of its two.
    """

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.input = nn.Linear(inputs, 4 * hidden)
        self.recurrent = nn.Linear(hidden, 4 * hidden, bias=False)
        self.hidden = hidden
        bound = hidden**-0.5
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, length, inputs) to (batch, length, hidden)."""
        state = cell = x.new_zeros(x.shape[0], self.hidden)
        outputs = []
        for gates in self.input(x).unbind(1):
            i, f, g, o = (gates + self.recurrent(state)).chunk(4, dim=1)
            cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
            state = torch.sigmoid(o) * torch.tanh(cell)
            outputs.append(state)
        return torch.stack(outputs, dim=1)


class _FusedLSTM(nn.LSTM):
    """``nn.LSTM`` that returns its outputs alone."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        outputs: Tensor = super().forward(x)[0]
        return outputs


def char_lstm(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    embedding: int = 8,
    hidden: int = 256,
    layers: int = 2,
    fused: bool = False,
) -> nn.Module:
    """Build an embedding, an LSTM and a linear layer that predict the next character at every position.

    Parameters
    ----------
    input_shape : tuple of int
        (length,); not needed, any length will do.
    num_classes : int
        Number of characters.
    embedding, hidden, layers : int
        Sizes; LEAF's are 8, 256 and 2.
    fused : bool
        Use ``nn.LSTM``: two to three times as fast, but its packed weights cannot be sparsified.

    Returns
    -------
    nn.Module
        Maps int64 (batch, length) to logits (batch, length, num_classes).
    """
    if fused:
        recurrent: list[nn.Module] = [_FusedLSTM(embedding, hidden, layers, batch_first=True)]
    else:
        recurrent = [_LinearLSTM(embedding if layer == 0 else hidden, hidden) for layer in range(layers)]
    return nn.Sequential(nn.Embedding(num_classes, embedding), *recurrent, nn.Linear(hidden, num_classes))
