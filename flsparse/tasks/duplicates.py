"""Samples that are there twice: one that is trained on and tested on says more of memory than of skill."""

import hashlib
from collections.abc import Iterable, Iterator

import torch

from flsparse.tasks.data import Data

_AT_ONCE = 1000  # samples in memory


def digests(data: Data) -> Iterator[bytes]:
    """Yield a digest of each sample's input as stored, 16 bytes of BLAKE2b, in order."""
    for index in torch.split(data.index, _AT_ONCE):
        for sample in data.all_inputs[index].cpu():
            yield hashlib.blake2b(sample.contiguous().numpy().tobytes(), digest_size=16).digest()


def tested_and_trained(trained: Iterable[Data], tested: Iterable[Data]) -> int:
    """Return how many samples of the test parts are, byte by byte, among those of the training parts.

    Parameters
    ----------
    trained, tested : iterable of Data
        All of them are read once.

    Examples
    --------
    >>> inputs = torch.tensor([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0]])
    >>> parts = [Data(inputs, inputs, torch.tensor(places), lambda batch: batch) for places in ([0, 1], [2])]
    >>> tested_and_trained(parts[:1], parts[1:])
    1
    """
    known = {digest for data in trained for digest in digests(data)}
    return sum(digest in known for data in tested for digest in digests(data))
