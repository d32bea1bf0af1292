"""Cut a model at layers' names: a bottom for the device, a top for the server.

    model = cut_model(model, ["layer2"])        two parts: up to and with layer2, and all that follows

The model is traced symbolically (``torch.fx``), so it need not be a chain of layers; but at a cut one tensor alone may
cross. Parts share parameters and buffers with the model, under the same state-dict keys.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from flsparse.configs import did_you_mean


@dataclass(frozen=True)
class Cut:
    """A place where a model can be cut.

    Attributes
    ----------
    name : str
        The layer that it follows.
    rectified : bool
        Whether the tensor that crosses cannot be negative.
    """

    name: str
    rectified: bool


class _Tracer(fx.Tracer):
    """Traces a model with every candidate kept whole."""

    def __init__(self, whole: Sequence[str] = ()) -> None:
        super().__init__()
        self.whole = set(whole)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Keep the named modules whole, as torch's own are."""
        return module_qualified_name in self.whole or super().is_leaf_module(m, module_qualified_name)


def _trace(model: nn.Module, whole: Sequence[str] = ()) -> fx.Graph:
    try:
        return _Tracer(whole).trace(model)
    except Exception as error:
        raise ValueError(
            f"{type(model).__name__} cannot be cut: torch.fx cannot trace it ({error}); split learning needs a model "
            "whose forward does not branch on its input"
        ) from error


def _crossing(graph: fx.Graph) -> dict[fx.Node, bool]:
    """Return each node with whether its value alone is needed by the nodes that follow it."""
    places = _places(graph)
    alone, reach = {}, -1
    for node, place in places.items():
        if node.op in ("get_attr", "output"):
            continue
        last_use = max((places[user] for user in node.users), default=-1)
        alone[node] = reach <= place < last_use
        reach = max(reach, last_use)
    return alone


def _places(graph: fx.Graph) -> dict[fx.Node, int]:
    return {node: place for place, node in enumerate(graph.nodes)}


def cut_model(model: nn.Module, cuts: Sequence[str]) -> list[fx.GraphModule]:
    """Cut a model behind the named layers.

    Parameters
    ----------
    model : nn.Module
        Takes one tensor and returns one.
    cuts : Sequence[str]
        Names of layers, as in ``named_modules()``, in the order in which they compute.

    Returns
    -------
    list[torch.fx.GraphModule]
        One part more than there are cuts.

    Raises
    ------
    ValueError
        There is no such layer, more than its output crosses there, a part would have no parameters, two parts share
        one, or the model cannot be traced.
    """
    names = {name for name, _ in model.named_modules()} - {""}
    for cut in cuts:
        if cut not in names:
            known = [each.name for each in candidates(model)]
            raise ValueError(
                f"the model has no layer {cut!r}{did_you_mean(cut, known)} (cut at one of {', '.join(known)})"
            )
    graph = _trace(model, cuts)
    alone = _crossing(graph)
    at = [_node_of(graph, cut, model) for cut in cuts]
    for cut, node in zip(cuts, at, strict=True):
        if not alone[node]:
            known = [each.name for each in candidates(model)]
            raise ValueError(
                f"cut={cut}: more than this layer's output crosses there; cut at one of {', '.join(known)}"
            )
    places = _places(graph)
    if [places[node] for node in at] != sorted({places[node] for node in at}):
        raise ValueError(f"the cuts {', '.join(cuts)} are not in the order in which the layers compute")
    ends = [*at, None]
    parts = []
    begin: fx.Node | None = None
    for end in ends:
        parts.append(_part(model, graph, begin, end))
        begin = end
    for part, before, behind in zip(parts, [None, *cuts], [*cuts, None], strict=True):
        if not any(True for _ in part.parameters()):
            known = [each.name for each in candidates(model)]
            where = f"before {behind}" if before is None else f"behind {before}"
            where += f" up to {behind}" if before is not None and behind is not None else ""
            raise ValueError(f"cut={before or behind}: no parameters {where}; cut at one of {', '.join(known)}")
    _refuse_shared(parts)
    return parts


def _refuse_shared(parts: Sequence[nn.Module]) -> None:
    seen: set[int] = set()
    for part in parts:
        own = {id(parameter): name for name, parameter in part.named_parameters()}
        for shared in own.keys() & seen:
            raise ValueError(f"the weight {own[shared]} is used on both sides of a cut: each would train its own copy")
        seen |= own.keys()


def _node_of(graph: fx.Graph, name: str, model: nn.Module) -> fx.Node:
    nodes: list[fx.Node] = [node for node in graph.nodes if node.op == "call_module" and node.target == name]
    if len(nodes) != 1:
        known = [each.name for each in candidates(model)]
        raise ValueError(f"cut={name}: the layer is used {len(nodes)} times; cut at one of {', '.join(known)}")
    return nodes[0]


def _part(model: nn.Module, graph: fx.Graph, begin: fx.Node | None, end: fx.Node | None) -> fx.GraphModule:
    """Return the nodes behind ``begin`` up to and with ``end``, as a module."""
    part = fx.Graph()
    copies: dict[Any, Any] = {}
    if begin is not None:
        copies[begin] = part.placeholder("smashed")
    inside = begin is None
    for node in graph.nodes:
        if node.op == "get_attr" and node not in copies and _used_inside(node, graph, begin, end):
            copies[node] = part.node_copy(node, lambda n: copies[n])
        elif inside and node.op == "output":
            part.output(copies[node.all_input_nodes[0]])
        elif inside and node.op != "get_attr":
            copies[node] = part.node_copy(node, lambda n: copies[n])
            if node is end:
                part.output(copies[node])
                break
        inside = inside or node is begin
    return fx.GraphModule(model, part)


def _used_inside(node: fx.Node, graph: fx.Graph, begin: fx.Node | None, end: fx.Node | None) -> bool:
    places = _places(graph)
    low = -1 if begin is None else places[begin]
    high = len(places) if end is None else places[end]
    return any(low < places[user] <= high for user in node.users)


def candidates(model: nn.Module) -> list[Cut]:
    """Return where a model can be cut, in order: layers and blocks behind which parameters remain on both sides.

    Of several layers in a row that change no shape or count (a norm and its activation), all are candidates; a block is
    one when its output alone crosses.
    """
    blocks = [name for name, module in model.named_modules() if name and any(True for _ in module.children())]
    found: dict[str, tuple[int, Cut]] = {}
    for whole in [[], *([block] for block in blocks)]:
        graph = _trace(model, whole)
        places, alone = _places(graph), _crossing(graph)
        order = [(node, _parameters(model, node)) for node in graph.nodes]
        total, before = sum(count for _, count in order), 0
        for node, count in order:
            before += count
            named = node.op == "call_module" and alone.get(node, False)
            if not named or not 0 < before < total or str(node.target) in found:
                continue
            if sum(other.target == node.target for other in graph.nodes) > 1:
                continue
            found[str(node.target)] = (before * 10_000 + places[node], Cut(str(node.target), _rectified(model, node)))
    return [cut for _, cut in sorted(found.values(), key=lambda each: each[0])]


def _parameters(model: nn.Module, node: fx.Node) -> int:
    if node.op == "call_module":
        return sum(p.numel() for p in model.get_submodule(str(node.target)).parameters())
    if node.op == "get_attr":
        value: Any = model
        for part in str(node.target).split("."):
            value = getattr(value, part)
        return value.numel() if isinstance(value, nn.Parameter) else 0
    return 0


_RECTIFIERS = (nn.ReLU, nn.ReLU6, nn.Sigmoid, nn.Softmax, nn.Softplus)
_KEEPERS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Dropout, nn.Flatten, nn.Identity)


def _rectified(model: nn.Module, node: fx.Node) -> bool:
    """Whether a node's output cannot be negative, as far as its layers tell."""
    if node.op == "call_function":
        if node.target in (torch.relu, torch.nn.functional.relu):
            return True
        return node.target is torch.flatten and _rectified(model, node.all_input_nodes[0])
    if node.op != "call_module":
        return False
    module = model.get_submodule(str(node.target))
    if isinstance(module, _RECTIFIERS):
        return True
    if isinstance(module, _KEEPERS):
        return _rectified(model, node.all_input_nodes[0])
    if any(True for _ in module.children()):
        try:
            inner = _Tracer().trace(module)
        except Exception:  # tracing a user's forward may raise anything: it is not known to rectify, so signs are coded
            return False
        (output,) = (n for n in inner.nodes if n.op == "output")
        return isinstance(output.args[0], fx.Node) and _rectified(module, output.args[0])
    return False


def default_head(model: nn.Module, cut: str) -> str:
    """Return the last layer behind ``cut`` that leaves parameters behind itself: where a head begins that keeps labels.

    Raises
    ------
    ValueError
        There is none.
    """
    names = [each.name for each in candidates(model)]
    if cut not in names[:-1]:
        raise ValueError(
            f"no layer behind cut={cut!r} leaves a head with parameters; cut at one of {', '.join(names[:-1])}"
        )
    return names[-1]
