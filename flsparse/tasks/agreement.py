"""What nodes with data of their own agree on before round 1: classes, columns, categories, statistics, shapes.

Each node says what it holds; the agreement is the union, or what the configuration declares. It is made of settings of
the data set's loader, such as ``classes``, so that a node reads its data by it as if they had been declared.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from flsparse.tasks.arrays import unchanged
from flsparse.tasks.data import Source, tokens
from flsparse.tasks.moments import Moments
from flsparse.tasks.targets import by_size

SETTINGS = ("classes", "features", "categories", "statistics")
_MOST = 10_000  # classes, columns or categories of a column


@dataclass(frozen=True)
class Agreement:
    """What all nodes of a federation share; plain values.

    Attributes
    ----------
    settings : dict
        Settings of the loader that the configuration leaves open, by name.
    shape : list of int
        Of a sample.
    is_text : bool
        Samples are character codes.
    target_shape : list of int
        Of a sample's target.
    num_classes : int
        0 where targets are no classes.
    labels : list of str, optional
        Names of the classes.
    objective : str
        What the targets suggest.
    counts : list of int
        Samples of each class in the nodes' test parts; empty where targets are no classes.
    """

    settings: dict[str, Any]
    shape: list[int]
    is_text: bool
    target_shape: list[int]
    num_classes: int
    labels: list[str] | None
    objective: str
    counts: list[int] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        """Return the fields by name."""
        return asdict(self)

    def source(self) -> Source:
        """Return a data set without samples, for a server that has none."""
        dtype = torch.int64 if self.is_text else torch.float32
        inputs = torch.zeros((0, *self.shape), dtype=dtype)
        targets = torch.zeros((0, *self.target_shape), dtype=torch.int64 if self.num_classes else torch.float32)
        prepare, labels = tokens if self.is_text else unchanged, None if self.labels is None else tuple(self.labels)
        return Source(
            inputs, targets, inputs, targets, self.num_classes, prepare, labels=labels, objective=self.objective
        )

    def check(self, source: Source) -> None:
        """Refuse a node's data that are not as agreed.

        Raises
        ------
        ValueError
            They differ; the message says in what.
        """
        labels = None if source.labels is None else list(source.labels)
        for what, ours, agreed, mend in (
            ("samples of shape", list(source.input_shape), self.shape, "resize them, or select columns"),
            (
                "targets of shape",
                list(source.train_targets.shape[1:]),
                self.target_shape,
                "bring targets of that shape",
            ),
            ("classes", source.num_classes, self.num_classes, "declare all by dataset.classes"),
            ("the classes", labels, self.labels, "name them alike"),
            ("targets for", source.objective, self.objective, "bring targets of that kind"),
        ):
            if ours != agreed:
                raise ValueError(f"this node has {what} {ours}, and {agreed} is agreed: {mend}")


def holdings(source: Source) -> dict[str, Any]:
    """Return what a node says of its data, as plain values: sizes, shapes, counts, and what the loader has found."""
    counts = []
    if source.num_classes:
        counts = torch.bincount(source.test_targets.flatten().long(), minlength=source.num_classes).tolist()
    return {
        "train": len(source.train_inputs),
        "test": len(source.test_inputs),
        "shape": list(source.input_shape),
        "is_text": source.is_text,
        "target_shape": list(source.train_targets.shape[1:]),
        "num_classes": source.num_classes,
        "labels": None if source.labels is None else list(source.labels),
        "objective": source.objective,
        "counts": counts,
        **source.holds,
    }


def agree(held: Mapping[int, Mapping[str, Any]], declared: Mapping[str, Any]) -> tuple[Agreement, dict[int, str]]:
    """Find what nodes share.

    Parameters
    ----------
    held : Mapping
        :func:`holdings` of each node, by partition id.
    declared : Mapping
        The settings of the data set: those of :data:`SETTINGS` that are set hold.

    Returns
    -------
    agreement : Agreement
    left_out : dict[int, str]
        Nodes that differ in what cannot be united, with the reason.

    Raises
    ------
    ValueError
        No node is left, or all together hold one class.
    """
    left_out: dict[int, str] = {}
    nodes: dict[int, Mapping[str, Any]] = {}
    for node in sorted(held):
        if fault := _malformed(held[node]):
            left_out[node] = f"says of its data {fault}"
        else:
            nodes[node] = held[node]
    for key in ("objective", "is_text", "target_shape", "features", "num_classes", "shape"):
        united = ("features" in next(iter(nodes.values()), {}), "classes" in next(iter(nodes.values()), {}))
        if (key == "num_classes" and united[1]) or (key == "shape" and united[0]):
            continue
        common = _most_common([_comparable(each.get(key)) for each in nodes.values()])
        for node in [node for node, each in nodes.items() if not _covers(key, each.get(key), common)]:
            left_out[node] = f"has {key.replace('_', ' ')} {nodes.pop(node).get(key)}, and {common} is what most have"
    if not nodes:
        raise ValueError(
            f"no node says what data it holds: {'; '.join(f'node {n} {why}' for n, why in left_out.items())}"
        )
    first, several = next(iter(nodes.values())), list(nodes.values())
    settings = _united(several, declared)
    classes = settings.get("classes") or declared.get("classes")
    if classes is not None and len(classes) < 2 and first["num_classes"]:
        raise ValueError(f"all nodes together hold one class, {', '.join(classes)}: nothing can be told apart")
    shape = list(first["shape"])
    if "features" in first:
        categories = settings.get("categories") or declared.get("categories") or {}
        shape[0] = sum(len(categories.get(name, ("",))) for name in settings.get("features") or declared["features"])
    count = len(classes) if classes is not None and first["num_classes"] else first["num_classes"]
    agreement = Agreement(
        settings,
        shape,
        first["is_text"],
        list(first["target_shape"]),
        count,
        first["labels"] if classes is None else list(classes),
        first["objective"],
        _counts(several, classes, count),
    )
    return agreement, left_out


def _united(nodes: list[Mapping[str, Any]], declared: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that nodes share, without those that are declared."""
    made: dict[str, Any] = {}
    if "classes" in nodes[0]:
        made["classes"] = sorted({name for each in nodes for name in each["classes"]}, key=by_size)
    if "features" in nodes[0]:
        made["features"] = [name for name in nodes[0]["features"] if all(name in each["features"] for each in nodes)]
        texts = [name for name in made["features"] if any(name in each["categories"] for each in nodes)]
        made["categories"] = {
            name: sorted({text for each in nodes for text in each["categories"].get(name, ())}) for name in texts
        }
        numbers = dict.fromkeys(name for each in nodes for name in each["moments"] if name not in texts)
        total = {
            name: sum((Moments.read(each["moments"][name]) for each in nodes if name in each["moments"]), Moments())
            for name in numbers
        }
        made["statistics"] = {name: [each.mean, each.std] for name, each in total.items()}
    return {key: value for key, value in made.items() if declared.get(key) is None}


def _counts(nodes: list[Mapping[str, Any]], classes: list[str] | None, count: int) -> list[int]:
    """Add up the samples of each class in the test parts."""
    total = [0] * count
    for each in nodes if count else ():
        names = each.get("classes")
        for number, samples in enumerate(each["counts"]):
            place = classes.index(names[number]) if names and classes and names[number] in classes else number
            if place < count:
                total[place] += int(samples)
    return total


def _comparable(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value


def _most_common(values: list[Any]) -> Any:
    """Return the value that most have; of several the first."""
    counts = Counter(map(repr, values))
    return max(values, key=lambda value: counts[repr(value)], default=None)


def _covers(key: str, value: Any, common: Any) -> bool:
    """Whether a node's value goes with what most have: of columns it needs theirs, and may have more."""
    if key == "features" and isinstance(value, list) and isinstance(common, list):
        return set(common) <= set(value)
    return bool(_comparable(value) == common)


def _malformed(held: Mapping[str, Any]) -> str | None:
    """Return what is wrong with a node's words, None where they can be read."""
    try:
        sizes = [
            held["train"],
            held["test"],
            held["num_classes"],
            *held["shape"],
            *held["target_shape"],
            *held["counts"],
        ]
        names = [*(held["labels"] or ()), *held.get("classes", ()), *held.get("features", ())]
        for texts in held.get("categories", {}).values():
            names += texts
        moments = [Moments.read(each) for each in held.get("moments", {}).values()]
        if "features" in held and not ("categories" in held and "moments" in held):
            return "columns without categories and moments"
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return f"what cannot be read ({type(error).__name__}: {str(error)[:80]})"
    if not all(type(size) is int and 0 <= size < 2**40 for size in sizes) or type(held.get("is_text")) is not bool:
        return "sizes that are none"
    if not all(isinstance(name, str) and len(name) <= 200 for name in [*names, held.get("objective")]):
        return "names that are none"
    return "more than can be agreed on" if max(len(names), len(moments), held["num_classes"]) > _MOST else None
