"""Arrays from files: .npz, .npy and .safetensors, mapped into memory and read when a batch asks for them."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from flsparse.configs import did_you_mean
from flsparse.tasks.data import Normalize, Source, tokens
from flsparse.tasks.lazy import Lazy, lazily, rows_of
from flsparse.tasks.splits import held_out
from flsparse.tasks.targets import Stats, as_targets

NAMES = ("train_inputs", "train_targets", "train_groups", "test_inputs", "test_targets", "test_groups")
_WHOLE = ("inputs", "targets", "groups")  # of one part, of which the test part is held out


def arrays(
    *,
    file: str,
    root: str | None = None,
    target_file: str | None = None,
    group_file: str | None = None,
    names: Mapping[str, str] | None = None,
    layout: Literal["channels_first", "channels_last"] = "channels_first",
    test_fraction: float = 0.2,
    classes: list[str] | None = None,
    mean: Stats = 0.5,
    std: Stats = 0.5,
    objective: str | None = None,
    partial: bool = False,
) -> Source:
    """Map the arrays of a file.

    Parameters
    ----------
    file : str
        ``.npz`` or ``.safetensors`` with the arrays ``train_inputs``, ``train_targets``, ``test_inputs``,
        ``test_targets`` and, where samples have a natural node, ``train_groups`` and ``test_groups``; or with
        ``inputs``, ``targets`` and ``groups``, of which a test part is held out. Or an ``.npy`` of inputs.
    root : str, optional
        Folder of the files; on a device its ``dataset-root``.
    target_file, group_file : str, optional
        ``.npy`` of the targets and the groups beside an ``.npy`` of inputs.
    names : mapping, optional
        The file's own names by ours, such as ``{train_inputs: x_train}``.
    layout : {"channels_first", "channels_last"}
        Of images: (samples, channels, height, width), or (samples, height, width, channels).
    test_fraction : float
        Share of each group, or of all samples, that is held out where the file has no test part, in (0, 1).
    classes : list of str, optional
        Names of the classes, in the order of the targets 0, 1, ...; by default the targets that there are.
    mean, std : float or sequence of float
        Of images of 8 bits, in [0, 1] units.
    objective : str, optional
        What the targets are for; ``regression`` keeps whole numbers as numbers.
    partial : bool
        Other nodes hold other samples: classes may lack.

    Returns
    -------
    Source
        Bytes of three dimensions or four are images, and normalized; other whole numbers are character codes where a
        sample has one dimension; everything else is float32.

    Raises
    ------
    FileNotFoundError
        A file is missing.
    ValueError
        An array is missing, arrays are of different lengths, or a target is none.
    """
    path = located(file, root)
    found = _read(path)
    for key, other in (("targets", target_file), ("groups", group_file)):
        if other is not None:
            found[key] = _read(located(other, root))["inputs"]
    return source_of(
        found,
        str(path),
        names=names,
        layout=layout,
        test_fraction=test_fraction,
        classes=classes,
        mean=mean,
        std=std,
        objective=objective,
        partial=partial,
    )


def source_of(
    found: Mapping[str, Any],
    where: str,
    *,
    names: Mapping[str, str] | None = None,
    layout: str = "channels_first",
    test_fraction: float = 0.2,
    classes: list[str] | None = None,
    mean: Stats = 0.5,
    std: Stats = 0.5,
    objective: str | None = None,
    partial: bool = False,
) -> Source:
    """Return the data set of arrays by name (see :func:`arrays`); `where` they are from, for errors."""
    named = {
        ours: found[theirs]
        for ours, theirs in {**{key: key for key in found}, **(names or {})}.items()
        if theirs in found
    }
    missing = [theirs for theirs in (names or {}).values() if theirs not in found]
    whole = "inputs" in named
    wanted = _WHOLE if whole else NAMES
    missing += [key for key in wanted if not key.endswith("groups") and key not in named]
    if missing:
        mend = did_you_mean(missing[0], found) or "; dataset.names={train_inputs: NAME, ...} renames them"
        raise ValueError(f"{where} has no array {missing[0]!r}, only {', '.join(sorted(found)) or 'none'}{mend}")
    parts = {key: named[key] for key in wanted if key in named}
    _check_lengths(parts, where)
    if whole:
        groups = None if "groups" not in parts else np.asarray(parts["groups"])
        train, test = held_out(len(parts["inputs"]), test_fraction, groups, where=where)
        inputs = {"train": _inputs(parts["inputs"], layout, train), "test": _inputs(parts["inputs"], layout, test)}
        stored = np.asarray(parts["targets"])
        targets = (stored[train], stored[test])
        grouped = [None if groups is None else groups[index] for index in (train, test)]
    else:
        inputs = {part: _inputs(parts[f"{part}_inputs"], layout, None) for part in ("train", "test")}
        targets = (np.asarray(parts["train_targets"]), np.asarray(parts["test_targets"]))
        grouped = [np.asarray(parts[key]) if (key := f"{part}_groups") in parts else None for part in ("train", "test")]
    if inputs["train"].shape[1:] != inputs["test"].shape[1:]:
        shapes = " and ".join(str(tuple(each.shape[1:])) for each in inputs.values())
        raise ValueError(f"{where}: samples to train and to test on differ in shape, {shapes}: make them alike")
    made = as_targets(
        targets[0], targets[1], f"{where}: targets", classes=classes, objective=objective, partial=partial
    )
    codes = _group_codes(grouped, where)
    return Source(
        inputs["train"],
        made.train,
        inputs["test"],
        made.test,
        made.num_classes,
        _prepared(inputs["train"], mean, std),
        train_groups=codes[0],
        test_groups=codes[1],
        labels=made.labels,
        objective=made.objective,
        holds={"classes": list(made.labels or map(str, range(made.num_classes)))} if made.num_classes else {},
    )


def located(file: str, root: str | None) -> Path:
    """Return the path of a file below a root; FileNotFoundError where there is none."""
    path = Path(root or ".").expanduser() / Path(file).expanduser()
    if not path.is_file():
        raise FileNotFoundError(
            f"no file {path.resolve()}: dataset.file names it, below dataset.root where that is set"
        )
    return path


def _read(path: Path) -> dict[str, Any]:
    """Return the arrays of a file by name, mapped into memory where the format allows."""
    try:
        if path.suffix == ".npy":
            return {"inputs": np.load(path, mmap_mode="c", allow_pickle=False)}
        if path.suffix == ".npz":
            return _read_npz(path)
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, framework="pt") as stored:  # tensors of the mapped file
                return {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
    except Exception as error:
        raise ValueError(
            f"{path} cannot be read as {path.suffix} ({str(error).splitlines()[0]}): write it again"
        ) from error
    raise ValueError(f"{path} is neither .npz nor .npy nor .safetensors: dataset=arrays reads those")


def _read_npz(path: Path) -> dict[str, Any]:
    """Map the arrays of an archive that are stored as they are; read those that are compressed."""
    found: dict[str, Any] = {}
    with zipfile.ZipFile(path) as archive, np.load(path, allow_pickle=False) as loaded:
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            if member.compress_type != zipfile.ZIP_STORED:
                found[name] = loaded[name]
                continue
            with archive.open(member) as file:
                version = np.lib.format.read_magic(file)
                header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
                shape, fortran, dtype = header[version](file)
                inside = file.tell()
            if dtype.hasobject or not np.prod(shape):
                found[name] = loaded[name]  # of objects: refused there
                continue
            with path.open("rb") as raw:  # a local header may differ from the central one in its extra field
                raw.seek(member.header_offset + 26)
                lengths = np.frombuffer(raw.read(4), "<u2")
            offset = member.header_offset + 30 + int(lengths.sum()) + inside
            order: Literal["F", "C"] = "F" if fortran else "C"
            found[name] = np.memmap(path, dtype, "c", offset, shape, order)
    return found


def _check_lengths(parts: Mapping[str, Any], where: str) -> None:
    for part in ("train_", "test_", ""):
        lengths = (
            {key: len(each) for key, each in parts.items() if key.startswith(part)}
            if part
            else {key: len(each) for key, each in parts.items() if "_" not in key}
        )
        if len(set(lengths.values())) > 1:
            told = ", ".join(f"{key} {length}" for key, length in lengths.items())
            raise ValueError(f"{where}: arrays of one part differ in length ({told}): a sample has one of each")


def _inputs(stored: Any, layout: str, index: np.ndarray | None) -> Tensor:
    """Return samples that stay in their file, images with their channels first."""
    if isinstance(stored, Lazy):
        return rows_of(stored, torch.arange(len(stored)) if index is None else torch.from_numpy(index))
    rows = stored if isinstance(stored, Tensor) else torch.from_numpy(np.asarray(stored, order="K"))
    last = layout == "channels_last" and rows.ndim == 4
    shape = tuple(rows.shape[1:])
    image = rows.dtype == torch.uint8 and rows.ndim == 3
    shape = (1, *shape) if image else (shape[-1], *shape[:-1]) if last else shape
    dtype = torch.float32 if rows.is_floating_point() or (rows.ndim > 2 and rows.dtype != torch.uint8) else rows.dtype

    def read(positions: Tensor) -> Tensor:
        batch = rows[positions]
        return (batch.movedim(-1, 1) if last else batch).reshape(len(positions), *shape).to(dtype)

    samples = lazily(read, len(rows), shape, dtype)
    return samples if index is None else rows_of(samples, torch.from_numpy(index))


def _prepared(samples: Tensor, mean: Stats, std: Stats) -> Any:
    if samples.dtype == torch.uint8 and len(samples.shape) == 4:
        return Normalize.of(mean, std)
    return unchanged if samples.is_floating_point() else tokens


def unchanged(samples: Tensor) -> Tensor:
    """Return stored float32 samples, which the model takes as they are."""
    return samples


def _group_codes(groups: list[np.ndarray | None], where: str) -> list[np.ndarray | None]:
    """Number groups by their sorted names, alike in both parts."""
    if groups[0] is None:
        return [None, None]
    known, codes = np.unique(groups[0], return_inverse=True)
    if groups[1] is None:
        return [codes.astype(np.int64), None]
    strange = np.setdiff1d(groups[1], known)
    if len(strange):
        raise ValueError(
            f"{where}: test_groups has {strange[0]!r}, whose samples nobody trains on; train_groups lacks it"
        )
    return [codes.astype(np.int64), np.searchsorted(known, groups[1]).astype(np.int64)]
