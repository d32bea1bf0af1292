"""Tasks: a model, its data and their partition among nodes."""

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from flsparse import rng
from flsparse.configs import build
from flsparse.kpi import kpi_named
from flsparse.nets.arrays import Arrays
from flsparse.nets.devices import device_named
from flsparse.nets.frozen import digest, freeze
from flsparse.nets.hidden import hidden_arrays, hidden_parameters
from flsparse.nets.personal import keep_local
from flsparse.nets.seeded import seeded
from flsparse.nets.weights import load_weights
from flsparse.tasks import datasets, training
from flsparse.tasks.agreement import Agreement, holdings
from flsparse.tasks.arrays import arrays
from flsparse.tasks.augmentation import Augment, make_augmentation
from flsparse.tasks.cost import TrainingFlops
from flsparse.tasks.data import Data, Source
from flsparse.tasks.folder import folder
from flsparse.tasks.hold_out import hold_out
from flsparse.tasks.hub import hub_images
from flsparse.tasks.metrics import COUNTED, Meter, check_metrics
from flsparse.tasks.models import build_model
from flsparse.tasks.models.lora import Lora, add_adapters
from flsparse.tasks.objective import Objective
from flsparse.tasks.objectives import OBJECTIVES, BinarySegmentation, Segmentation
from flsparse.tasks.partitions import Partition, likewise, make_partition
from flsparse.tasks.python import python_source
from flsparse.tasks.series import series
from flsparse.tasks.shakespeare import shakespeare
from flsparse.tasks.table import table

if TYPE_CHECKING:
    from flsparse.clients.core.fit import Fit
    from flsparse.clients.core.method import Hooks
    from flsparse.wire.messages import Scalar

LOADERS: dict[str, Callable[..., Source]] = {
    "digits": datasets.digits,
    "fashion_mnist": datasets.fashion_mnist,
    "mnist": datasets.mnist,
    "cifar10": datasets.cifar10,
    "shakespeare": shakespeare,
    "hf": hub_images,
    "arrays": arrays,
    "folder": folder,
    "table": table,
    "series": series,
}
_DIVISION = ("validation_fraction", "train_samples")  # settings of a data set that its loader does not see
_OF_THE_START = ("weights", "fresh")  # of the model: a server's, devices are sent what comes of them


class Task:
    """One learning problem, divided among nodes, of :func:`flsparse.tasks.build_task`; nodes and runs may share it.

    Parameters
    ----------
    config : Mapping
        As for :func:`flsparse.tasks.build_task`.
    source : Source, optional
        The data set, where it is loaded already.
    agreement : Agreement, optional
        What nodes with data of their own share, for the server's task.

    Attributes
    ----------
    source : Source
        The data set.
    agreement : Agreement or None
    objective : Objective
        The loss.
    kpi : Kpi
        What runs go by.
    metrics : list of str
        Metrics beside loss and accuracy, the KPI among them.
    num_nodes : int
        Number of nodes that hold data.
    """

    def __init__(
        self, config: Mapping[str, Any], source: Source | None = None, agreement: Agreement | None = None
    ) -> None:
        dataset = config["dataset"]
        self.agreement = agreement
        self.nodes: list[Task] = []  # of the nodes with data of their own that are on this machine
        self.seed = int(config["seed"])
        self.device = device_named(str(config.get("device", "cpu")))
        self._validation_fraction = float(dataset.get("validation_fraction", 0.1))
        self._train_samples = dataset.get("train_samples")
        self._model_config = dict(config["model"])
        start = {key: self._model_config.pop(key, None) for key in _OF_THE_START}
        self._freeze = self._model_config.pop("freeze", None) or ()
        self._local = self._model_config.pop("local", None) or ()
        asked_lora = self._model_config.pop("lora", None)
        self._lora = build({"lora": Lora}, "lora", asked_lora, what="model.lora") if asked_lora else None
        self._freezes = bool(self._freeze or self._lora)
        self._start = start if self._freezes else {}  # who can make what is frozen is not sent it
        self._partition_config = dict(config.get("partition", {}))
        self._flops = TrainingFlops()
        self._nodes = config.get("num_clients")
        asked = dict(config.get("objective") or {})
        name = asked.pop("name", None)
        looked_at = {
            "dataset": {key: value for key, value in dataset.items() if key not in _DIVISION},
            "objective": {"name": name, "ignore_label": asked.get("ignore_label")},
        }
        self.source = _load(json.dumps(looked_at, sort_keys=True)) if source is None else source
        name = name or self.source.objective
        self.objective: Objective = build(OBJECTIVES, name, asked, what="objective")
        if agreement is None:
            self.objective.check(self.source)
        self.kpi = kpi_named(config.get("metric") or self.objective.metric)
        wanted = dict.fromkeys((self.kpi.name, *(config.get("metrics") or ())))
        check_metrics(self.objective, wanted)
        self.metrics = [name for name in wanted if name not in COUNTED]
        self._augment = self._augmentation(config.get("augment") or ())
        self.num_nodes = len(self._partition) if not self._own else int(self._nodes or len(self._roots))

    def model(self) -> nn.Module:
        """Return a fresh model; its initial weights depend on the seed alone, and no global generator moves."""
        return copy.deepcopy(self._initial_model[0])

    def train_data(self, node: int) -> Data:
        """Return one node's training data.

        Raises
        ------
        ValueError
            If there is no such node.
        """
        if not 0 <= node < self.num_nodes:
            raise ValueError(f"partition id {node} is not among the {self.num_nodes} nodes of this task (num_clients)")
        if self.nodes:
            return self.nodes[node].train_data(node)
        if self._own:
            return self._train_view(self._split[0])
        return self._train_view(self._partition[node])

    def local_test_data(self, node: int) -> Data | None:
        """Return a node's test part: of data of its own, or with personal arrays its share; None where it has none."""
        if self.nodes:
            return self.nodes[node].local_test_data(node)
        if self._own:
            return self.test_data()
        return self.test_share(node) if self._local else None

    def test_share(self, node: int) -> Data:
        """Return a node's share of the test set, which is divided among the nodes as the training set is.

        By natural groups where test samples have one, else each class in proportion to the nodes' training samples of
        it. Shares are disjoint, and the smallest may be empty.
        """
        return self._test_view(self._test_shares[node])

    def class_counts(self, node: int) -> list[int]:
        """Return a node's training samples of each class; empty where targets are no classes of samples."""
        classes = 0 if self.source.is_text else self.source.num_classes
        return list(map(int, self.train_data(node).class_counts(classes))) if classes else []

    def pooled_data(self) -> Data:
        """Return the training data of all nodes together.

        Raises
        ------
        ValueError
            They lie on devices of their own.
        """
        if self._own:
            raise ValueError(
                "partition.kind=own: the nodes' data stay where they are, so nothing trains on all of them"
            )
        return self._train_view(np.sort(np.concatenate(self._partition)))

    def holdings(self) -> dict[str, Any]:
        """Return what a node says of its data before round 1 (see :func:`flsparse.tasks.agreement.holdings`)."""
        return holdings(self.source)

    def example(self, data: Data) -> Tensor:
        """Return two samples as the model takes them; made-up ones where there are no data."""
        if len(data):
            return self.sample(data, 2)[0][0]
        stream = rng.stream(self.seed, 0, -1, "example")
        shape = (2, *self.source.input_shape)
        if self.source.is_text:
            return torch.from_numpy(stream.integers(0, max(1, self.source.num_classes), shape)).to(self.device)
        return torch.from_numpy(stream.standard_normal(shape).astype(np.float32)).to(self.device)

    def validation_data(self) -> Data:
        """Return the part of the training set that no node holds, for choosing settings.

        Raises
        ------
        ValueError
            If the configuration sets none aside.
        """
        if len(self._split[1]) == 0:
            raise ValueError("there is no validation data: set dataset.validation_fraction above 0")
        return self._train_view(self._split[1])

    def test_data(self) -> Data:
        """Return the test set; where nodes are natural, the part of it that belongs to this task's nodes."""
        source, index = self.source, np.arange(len(self.source.test_inputs))
        if self._partition_config.get("kind") == "natural" and source.test_groups is not None:
            assert source.train_groups is not None
            present = {int(source.train_groups[part[0]]) for part in self._partition}
            index = np.flatnonzero(np.isin(source.test_groups, list(present)))
        return self._test_view(index)

    def optimizer(self, model: nn.Module, config: Mapping[str, "Scalar"]) -> torch.optim.Optimizer:
        """Return the local optimizer of one round (see :func:`flsparse.tasks.training.make_optimizer`)."""
        return training.make_optimizer(model, config, hidden_parameters(model, self.local))

    def fit(self, fit: "Fit", method: "Hooks", data: Data) -> dict[str, np.ndarray]:
        """Train on one node's data (see :func:`flsparse.tasks.training.train`)."""
        return training.train(fit, method, data, self._flops, self.objective, self._augment)

    def evaluate(self, model: nn.Module, data: Data) -> dict[str, Any]:
        """Return loss, accuracy and the task's other metrics (see :class:`flsparse.tasks.metrics.Meter`).

        Where their means over nodes would not be exact, the sums that are (``sums.`` before their names) stand beside.
        """
        meter = training.evaluate(model, data, self.meter())
        exact = not self.metrics and self.objective.even
        return meter.scores() | ({} if exact else meter.sums())

    def summed_loss(self, raw: Tensor, target: Tensor) -> Tensor:
        """Return the sum of a batch's loss."""
        return self.objective.loss(raw, target, reduction="sum")

    def meter(self) -> Meter:
        """Return a meter of the task's metrics, with nothing measured."""
        return Meter(self.objective, self.num_outputs, self.metrics)

    @cached_property
    def num_outputs(self) -> int:
        """Outputs of the model."""
        return self.objective.num_outputs(self.source)

    def sample(self, data: Data, size: int) -> list[tuple[Tensor, Tensor]]:
        """Return batches of a fixed random sample of some data, prepared as the model takes them, with their targets.

        Parameters
        ----------
        data : Data
        size : int
            Samples in all, at most; 0: all of them. A batch holds 100, and never one alone where there are more.
        """
        order = rng.stream(self.seed, 0, -1, "sample").permutation(len(data))[: size or None]
        index = data.index[torch.from_numpy(order)]
        parts = torch.chunk(index, max(1, len(index) // 100))
        inputs = [data.prepare(data.all_inputs[part].to(self.device)) for part in parts]
        targets = [
            self.objective.target(data.all_targets[part].to(self.device), batch)
            for part, batch in zip(parts, inputs, strict=True)
        ]
        return list(zip(inputs, targets, strict=True))

    @property
    def _own(self) -> bool:
        return bool(self._partition_config.get("kind") == "own")

    @property
    def _roots(self) -> list[str]:
        return list(self._partition_config.get("roots") or ())

    def _augmentation(self, steps: Sequence[Any]) -> Augment | None:
        if not steps:
            return None
        if len(self.source.input_shape) != 3:
            raise ValueError(f"augment={list(steps)} is for images: leave it out for other data")
        masks = isinstance(self.objective, Segmentation | BinarySegmentation)
        return make_augmentation(steps, masks=masks)

    def _train_view(self, index: np.ndarray) -> Data:
        source = self.source
        return Data(source.train_inputs, source.train_targets, torch.from_numpy(index), source.prepare)

    def _test_view(self, index: np.ndarray) -> Data:
        source = self.source
        return Data(source.test_inputs, source.test_targets, torch.from_numpy(index), source.prepare)

    @cached_property
    def _test_shares(self) -> Partition:
        source = self.source
        if self._partition_config.get("kind") == "natural" and source.test_groups is not None:
            assert source.train_groups is not None
            return [np.flatnonzero(source.test_groups == source.train_groups[part[0]]) for part in self._partition]
        trained, tested = source.train_targets, source.test_targets
        if not source.num_classes or trained.ndim > 1:
            trained, tested = (torch.zeros(len(each), dtype=torch.int64) for each in (trained, tested))
        return likewise(self._partition, trained.numpy(), tested.numpy(), rng.stream(self.seed, 0, -1, "test shares"))

    @property
    def frozen(self) -> list[str]:
        """State-dict keys of the arrays that never train (``model.freeze``, the base of ``model.lora``)."""
        return self._initial_model[1]

    @property
    def local(self) -> list[str]:
        """State-dict keys of the arrays that stay on their node (``model.local``)."""
        return self._initial_model[2]

    @cached_property
    def _initial_model(self) -> tuple[nn.Module, list[str], list[str]]:
        with seeded(rng.derive(self.seed, 0, -1, "init"), torch.device("cpu")):
            source = self.source
            model = build_model(self._model_config, source.input_shape, self.num_outputs, is_text=source.is_text)
        if (file := self._start.get("weights")) is not None and Path(file).expanduser().is_file():
            load_weights(model, file, self._start["fresh"] or ())  # a node without it is sent what is frozen
        base = list(self._freeze)
        if self._lora:
            with seeded(rng.derive(self.seed, 0, -1, "lora"), torch.device("cpu")):
                base += add_adapters(model, self._lora)
        frozen = freeze(model, base) if base else []
        model = model.to(self.device)
        return model, frozen, keep_local(model, self._local) if self._local else []

    @cached_property
    def frozen_arrays(self) -> Arrays:
        """Arrays that never train, by state-dict key."""
        return hidden_arrays(self._initial_model[0], self.frozen)

    @cached_property
    def frozen_digest(self) -> str:
        """A hash of the arrays that never train; empty where there are none."""
        return digest(self.frozen_arrays) if self._freezes else ""

    @property
    def notes(self) -> list[str]:
        """What the owner of the data should know of what becomes of them, a line each."""
        if self.nodes:
            return [f"node {node}: {note}" for node, task in enumerate(self.nodes) for note in task.notes]
        return [*self.source.notes, *self._notes_of_groups(), *self._notes_of_local()]

    def _notes_of_groups(self) -> list[str]:
        groups, tested = self.source.train_groups, len(self.source.test_inputs)
        if self._partition_config.get("kind") != "natural" or groups is None:
            return []
        there, left_out = len(np.unique(groups[self._split[0]])), tested - len(self.test_data())
        if self.num_nodes == there:
            return []
        trained = sum(map(len, self._partition))
        return [
            f"num_clients={self.num_nodes} of the {there} natural nodes take part; left out are those others' "
            f"{len(self._split[0]) - trained:,} training and {left_out:,} test samples; num_clients=null takes all"
        ]

    def _notes_of_local(self) -> list[str]:
        if not self.local:
            return []
        where = "test part" if self._own else "share of the test set"
        return [
            f"local={list(self._local)} keeps {len(self.local)} arrays on their nodes: each node evaluates, on its "
            f"{where}, and model.safetensors holds the other arrays"
        ]

    @cached_property
    def _split(self) -> tuple[np.ndarray, np.ndarray]:
        train, held = hold_out(self.source, self._validation_fraction, self._train_samples, self.seed)
        groups = self.source.train_groups
        if self._partition_config.get("kind") == "natural" and groups is not None and self._train_samples is None:
            small = ~np.isin(groups[held], groups[train])  # nodes that would have nothing left to train on
            train, held = np.sort(np.concatenate([train, held[small]])), held[~small]
        return train, held

    @cached_property
    def _partition(self) -> Partition:
        source, (train, _) = self.source, self._split
        labels = source.train_targets.numpy()[train] if source.num_classes and source.train_targets.ndim == 1 else None
        groups = None if source.train_groups is None else source.train_groups[train]
        parts = make_partition(self._partition_config, labels, groups, len(train), self._nodes, self.seed)
        return [train[part] for part in parts]


@lru_cache(maxsize=2)
def _load(config: str) -> Source:
    return load(json.loads(config))


def load(config: Mapping[str, Any], *, partial: bool = False) -> Source:
    """Load the data set of a configuration; `partial` where other nodes hold other parts of it.

    Raises
    ------
    ValueError, FileNotFoundError
        As for :func:`flsparse.tasks.build_task`.
    """
    arguments = {key: value for key, value in config["dataset"].items() if key not in _DIVISION}
    asked = config.get("objective") or {}
    name, objective = arguments.pop("name", None), asked.get("name")
    if name == "python":
        return python_source(arguments, objective, asked.get("ignore_label"))
    offered = {"objective": objective, "ignore_label": asked.get("ignore_label"), "partial": partial}
    return build(LOADERS, name, arguments, what="dataset", offered=offered)
