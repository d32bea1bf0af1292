"""A small vision transformer out of plain linear layers."""

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


class _Attention(nn.Module):
    """Self-attention whose projections are ``nn.Linear``; ``nn.MultiheadAttention`` packs them out of reach."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, tokens, dim) to the same shape."""
        query, key, value = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(query, key, value)
        projected: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return projected


class _Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(dim), _Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        mixed: Tensor = x + self.mlp(self.norm2(x))
        return mixed


class _ViT(nn.Module):
    def __init__(self, channels: int, side: int, patch: int, dim: int, depth: int, heads: int, classes: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, dim, patch, stride=patch)
        self.position = nn.Parameter(torch.empty((side // patch) ** 2, dim).normal_(std=0.02))
        self.blocks = nn.Sequential(*[_Block(dim, heads) for _ in range(depth)])
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2) + self.position
        logits: Tensor = self.head(self.norm(self.blocks(x)).mean(1))
        return logits


def vit_tiny(
    input_shape: tuple[int, ...], num_classes: int, *, patch: int = 4, dim: int = 96, depth: int = 6, heads: int = 3
) -> nn.Module:
    """Build a pre-norm vision transformer that averages its tokens, 0.46 M parameters for CIFAR-10.

    Parameters
    ----------
    input_shape : tuple of int
        (channels, side, side), the side a multiple of `patch`.
    num_classes : int
    patch : int
        Pixels along one side of a patch.
    dim, depth, heads : int
        Width of a token, a multiple of `heads`; number of blocks; number of attention heads.

    Raises
    ------
    ValueError
        If the image cannot be cut into patches, or the width not into heads.
    """
    channels, height, width = input_shape
    if height != width or height % patch or dim % heads:
        raise ValueError(
            f"model.patch={patch} must divide the side of a square image ({height}x{width}) "
            f"and model.heads={heads} must divide model.dim={dim}"
        )
    return _ViT(channels, height, patch, dim, depth, heads, num_classes)
