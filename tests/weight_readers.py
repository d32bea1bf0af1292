"""Modules that read the weights of their layers past those layers' own forward passes."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Hands the weights of its layers to a function, as torchvision's Swin does."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = F.linear(x, self.qkv.weight, self.qkv.bias).chunk(3, -1)
        y: Tensor = F.linear((q @ k.mT).softmax(-1) @ v, self.proj.weight, self.proj.bias)
        return y


class Cosine(nn.Module):
    """Reads the normalized weight of a layer, and calls the layer, too."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = F.linear(F.normalize(x), F.normalize(self.head.weight)) + self.head(x)
        return y


class Decoder(nn.Module):
    """Decodes with the encoder's weight, without a second name for it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({"encoder": nn.Linear(8, 3)})

    def forward(self, x: Tensor) -> Tensor:
        encoder: Any = self.layers["encoder"]
        return F.linear(encoder(x).relu(), encoder.weight.t())


class Cell(nn.Module):
    """Reads the matrices of an LSTM, and runs it."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 8, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        lstm: Any = self.lstm
        y: Tensor = lstm(x)[0] + F.linear(x, lstm.weight_hh_l0[:8])
        return y


class ByHand(nn.Module):
    """Attention by a function, with the parameters of a layer of torch's."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        a: Any = self.attention
        parts = (a.in_proj_weight, a.in_proj_bias, None, None, False, 0.0, a.out_proj.weight, a.out_proj.bias)
        y: Tensor = F.multi_head_attention_forward(x, x, x, 8, 2, *parts)[0]
        y += a(x, x, x)[0]
        return y


READERS = [Attention, Cosine, Decoder, Cell, ByHand]
X = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(0))
