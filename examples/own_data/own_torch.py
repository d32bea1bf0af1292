"""A Dataset and a module of one's own: a folder is a node, and the data are read as PyTorch reads them."""

from pathlib import Path

import torch
from PIL import Image
from torch import nn


class Parts(torch.utils.data.Dataset):
    def __init__(self, files):
        self.files = files

    def __len__(self):
        return len(self.files)

    def __getitem__(self, place):
        pixels = Image.open(self.files[place]).resize((20, 20)).tobytes()
        return torch.tensor(list(pixels)).reshape(1, 20, 20) / 64 - 1, int(self.files[place].parent.name != "good")


def load(root):
    files = {part: sorted(Path(root).glob(f"**/{part}/*/*.png")) for part in ("train", "test")}
    sites = {f"{part}_groups": [file.parts[-4] for file in found] for part, found in files.items()}
    return {"train": Parts(files["train"]), "test": Parts(files["test"]), "classes": ["good", "bad"], **sites}


def net(num_classes, width):
    first, second = nn.Conv2d(1, width, 3, stride=2), nn.Conv2d(width, width, 3, stride=2)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Flatten(), nn.Linear(16 * width, num_classes))
