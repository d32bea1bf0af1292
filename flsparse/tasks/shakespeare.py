"""Shakespeare by role: predict the next character; a node is a role, as in LEAF."""

import gzip
import json
from pathlib import Path

import numpy as np
import torch

from flsparse.tasks.data import Source, tokens

_FILE = "shakespeare/shakespeare_by_role.json.gz"


def shakespeare(
    *, root: str, sequence_length: int = 80, min_characters: int = 2000, test_fraction: float = 0.2
) -> Source:
    """Cut each role's lines into sequences, the last of them kept for the test.

    A sample is `sequence_length` characters and, for each, the one that follows. (LEAF slides its window by
    one and scores only the last character: more context for each prediction, at 80 times the work.)

    Parameters
    ----------
    root : str
        Folder that holds ``shakespeare/shakespeare_by_role.json.gz``: ``{"user_data": {role: text}}``.
    sequence_length : int
        Characters of a sample.
    min_characters : int
        Shorter roles are left out; raised to three sequences, one each to train, validate and test on.
    test_fraction : float
        Share of each role's sequences, from its end, kept for the test, in (0, 1).

    Returns
    -------
    Source
        Inputs and targets uint8 (samples, sequence_length), groups by role.

    Raises
    ------
    FileNotFoundError
        If the file is missing.
    ValueError
        If a number is out of range or no role is long enough.
    """
    path = Path(root).expanduser() / _FILE
    if not path.is_file():
        raise FileNotFoundError(f"no file {path.resolve()}: set dataset.root to the folder that holds {_FILE}")
    if sequence_length < 1 or not 0 < test_fraction < 1:
        raise ValueError(
            f"dataset.sequence_length={sequence_length} must be at least 1, "
            f"dataset.test_fraction={test_fraction} in (0, 1)"
        )
    with gzip.open(path, "rt", encoding="utf-8") as file:
        texts: dict[str, str] = json.load(file)["user_data"]
    shortest = max(min_characters, 3 * sequence_length + 1)
    # The alphabet is the whole file's, so that leaving out roles renames no character.
    alphabet = np.unique(np.concatenate([_codes(text) for text in texts.values()]))
    train: list[np.ndarray] = []
    test: list[np.ndarray] = []
    roles = [role for role in sorted(texts) if len(texts[role]) >= shortest]
    if not roles:
        raise ValueError(f"no role in {path} has dataset.min_characters={shortest} characters; lower it")
    for role in roles:
        text = np.searchsorted(alphabet, _codes(texts[role])).astype(np.uint8)
        count = (len(text) - 1) // sequence_length
        starts = np.arange(count) * sequence_length
        windows = text[starts[:, None] + np.arange(sequence_length + 1)]
        held = max(1, round(test_fraction * count))
        train.append(windows[:-held])
        test.append(windows[-held:])
    train_windows, test_windows = (torch.from_numpy(np.concatenate(parts)) for parts in (train, test))
    return Source(
        train_windows[:, :-1],
        train_windows[:, 1:],
        test_windows[:, :-1],
        test_windows[:, 1:],
        len(alphabet),
        tokens,
        train_groups=np.repeat(np.arange(len(roles)), [len(windows) for windows in train]),
        test_groups=np.repeat(np.arange(len(roles)), [len(windows) for windows in test]),
        in_time=True,
    )


def _codes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
