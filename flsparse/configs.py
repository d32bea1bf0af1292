"""Composed configurations: their keys, near names for mistyped ones, and objects built from a name and arguments."""

import difflib
import importlib
import pkgutil
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from inspect import Parameter, signature
from types import ModuleType, NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")
AUTO = "auto"  # of client.lr: searched before round 1
Fixed = Mapping[str, tuple[object, str]]  # value and reason, by argument
_WORDS = {float: "a number", int: "a whole number", bool: "true or false", str: "a text", NoneType: "null"}


def near(name: str, known: Iterable[str]) -> list[str]:
    """Return the known names that a mistyped one may stand for, the most alike first.

    A dotted key is also recognized by its last part, so that ``sparsity`` finds ``strategy.sparsity``, and that by its
    initials, so that ``learning_rate`` finds ``lr``.

    >>> near("num_round", ["num_rounds", "seed"])
    ['num_rounds']
    >>> near("sparsity", ["strategy.sparsity", "strategy.name"])
    ['strategy.sparsity']
    """
    names = list(known)
    whole = difflib.get_close_matches(name, names, n=3, cutoff=0.7)
    leaf = name.rsplit(".", 1)[-1]
    initials = "".join(word[:1] for word in leaf.split("_"))
    ends = {each: each.rsplit(".", 1)[-1] for each in names}
    leaves = {
        each: max(difflib.SequenceMatcher(None, leaf, end).ratio(), len(end) > 1 and end == initials)
        for each, end in ends.items()
    }
    by_leaf = sorted((each for each in names if leaves[each] >= 0.8), key=lambda each: -leaves[each])
    return list(dict.fromkeys(by_leaf + whole))[:3]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean a or b?"``, or nothing where no known name is near."""
    names = near(name, known)
    return f"; did you mean {' or '.join(names)}?" if names else ""


def keys_of(cfg: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return the dotted names of all keys, branches included.

    >>> keys_of({"seed": 0, "client": {"lr": 0.1}})
    ['seed', 'client', 'client.lr']
    """
    keys = []
    for key, value in cfg.items():
        keys.append(f"{prefix}{key}")
        if isinstance(value, Mapping):
            keys += keys_of(value, f"{prefix}{key}.")
    return keys


def lookup(cfg: Mapping[str, Any], key: str) -> Any:
    """Return the value of a dotted key, None where it is absent."""
    value: Any = cfg
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def sampled_nodes(cfg: Mapping[str, Any]) -> int:
    """Return how many of ``num_clients`` nodes are asked each round: ``fraction_train``, at least ``min_train_nodes``.

    >>> sampled_nodes({"num_clients": 100, "fraction_train": 0.29})
    29
    """
    at_least = lookup(cfg, "strategy.min_train_nodes")
    return max(
        at_least if isinstance(at_least, int) else 1,
        int(float(cfg.get("fraction_train", 1.0)) * int(cfg["num_clients"]) + 1e-9),
    )


def build(
    registry: Mapping[str, Callable[..., T]],
    name: object,
    arguments: Mapping[str, Any],
    *,
    what: str,
    offered: Mapping[str, Any] | None = None,
) -> T:
    """Call the class or function that a registry holds under a name.

    Parameters
    ----------
    registry : Mapping[str, Callable]
        Classes and functions by name. Their settings are their keyword-only parameters.
    name : object
        A key of the registry; nothing else is ever called.
    arguments : Mapping[str, Any]
        Settings, plain values of the parameters' types.
    what : str
        Section of the configuration, for errors: ``strategy``, ``model``, ...
    offered : Mapping[str, Any], optional
        Further arguments, each passed if the callable takes it, does not fix it and ``arguments`` lack it.

    Raises
    ------
    ValueError
        The name or a setting is unknown, a setting is missing or of another type, or the callable refuses its value.

    Examples
    --------
    >>> def ring(nodes: int, *, closed: bool = True) -> str: return f"{nodes} {closed}"
    >>> build({"ring": ring}, "ring", {"closed": False}, what="graph", offered={"nodes": 4, "seed": 0})
    '4 False'
    >>> build({"ring": ring}, "ring", {"close": False}, what="graph", offered={"nodes": 4})
    Traceback (most recent call last):
    ValueError: graph.close is not a setting of ring; did you mean closed?
    """
    if not isinstance(name, str) or name not in registry:
        raise ValueError(f"{what}={name!r} is none of {', '.join(registry)}{did_you_mean(str(name), registry)}")
    made = registry[name]
    takes, free = parameters(made), open_parameters(made)
    settings = {key: each for key, each in takes.items() if each.kind is Parameter.KEYWORD_ONLY}
    for key in arguments:
        if key not in settings:
            mend = did_you_mean(key, settings) or f", which takes {', '.join(settings) or 'none'}"
            raise ValueError(f"{what}.{key} is not a setting of {name}{mend}")
    taken = {key: value for key, value in (offered or {}).items() if key in free}
    given = {**taken, **arguments}
    for key, each in settings.items():
        if each.default is Parameter.empty and given.get(key) is None:
            raise ValueError(f"{what}.{key} must be set for {name}")
    for key, value in arguments.items():
        hint = settings[key].annotation
        if not fits(value, hint) and get_origin(hint) is Literal:
            choices = [str(each) for each in get_args(hint)]
            mend = did_you_mean(str(value), choices)
            raise ValueError(f"{what}.{key}={value!r} is none of {', '.join(choices)}{mend}")
        if not fits(value, hint):
            raise ValueError(f"{what}.{key}={value!r} is not {_spelled(hint)}")
    try:
        return made(**given)
    except ValueError as error:
        named = re.match(r"\w+(?![\w.])", str(error))
        if named and named[0] in arguments:
            raise ValueError(f"{what}.{error}") from error
        raise


def settled(given: Mapping[str, Any], fixed: Fixed) -> dict[str, Any]:
    """Return arguments for a base class, with the ones that a subclass fixes.

    Parameters
    ----------
    given : Mapping[str, Any]
        Arguments by name.
    fixed : Mapping[str, tuple[object, str]]
        Value and reason of each fixed argument; a class names it ``fixed``, and :func:`build` offers it none of these.

    Raises
    ------
    ValueError
        A fixed argument is given another value.
    """
    for key, (value, reason) in fixed.items():
        if key in given and given[key] != value:
            raise ValueError(f"{key}={given[key]!r} cannot be chosen: it is {value!r}, since {reason}; leave it out")
    return {**given, **{key: value for key, (value, _) in fixed.items()}}


def import_all(package: str, paths: Iterable[str]) -> list[ModuleType]:
    """Import every module that lies directly in a package: one file more is one name more in its registry.

    Parameters
    ----------
    package : str
        Dotted name, ``__name__`` of the package.
    paths : Iterable[str]
        ``__path__`` of the package.
    """
    names = [module.name for module in pkgutil.iter_modules(paths) if not module.ispkg]
    return [importlib.import_module(f"{package}.{name}") for name in sorted(names)]


@lru_cache
def parameters(made: Callable[..., Any]) -> dict[str, Parameter]:
    """Return the parameters of a function or class by name, annotated by their types.

    Where a class's constructor has a ``**`` parameter, the next constructor's up the MRO follow.
    """
    classes = made.__mro__ if isinstance(made, type) else ()
    functions = [each.__dict__["__init__"] for each in classes if "__init__" in each.__dict__] or [made]
    found: dict[str, Parameter] = {}
    for function in functions:
        hints, forwards = get_type_hints(function), False
        for each in signature(function).parameters.values():
            if each.kind is Parameter.VAR_KEYWORD:
                forwards = True
            elif each.name != "self":
                found.setdefault(each.name, each.replace(annotation=hints.get(each.name, Any)))
        if not forwards:
            break
    return found


def open_parameters(made: Callable[..., Any]) -> dict[str, Parameter]:
    """Return the parameters of a function or class that it does not fix (see :func:`settled`)."""
    fixed: Fixed = getattr(made, "fixed", {})
    return {key: each for key, each in parameters(made).items() if key not in fixed}


def fits(value: object, hint: Any) -> bool:
    """Return whether a plain value is of a type: a plain class, ``Literal``, sequence or mapping, or a union of them.

    A whole number fits ``float``; a bool fits ``bool`` alone. Of a mapping the values count, not the keys.

    >>> fits(1, float), fits(True, int), fits([1, "a"], list[int]), fits(None, int | None)
    (True, False, False, True)
    """
    kind, inner = get_origin(hint), get_args(hint)
    if hint is Any or hint is object:
        return True
    if kind is Literal:
        return any(value == each and type(value) is type(each) for each in inner)
    if isinstance(kind, type) and issubclass(kind, Mapping):
        return isinstance(value, kind) and all(fits(each, inner[1]) for each in value.values())
    if isinstance(kind, type) and issubclass(kind, Sequence):
        return (
            isinstance(value, Sequence) and not isinstance(value, str) and all(fits(each, inner[0]) for each in value)
        )
    if inner:
        return any(fits(value, each) for each in inner)
    if hint in _WORDS:
        return type(value) is hint or (hint is float and type(value) is int)
    return isinstance(value, hint)


def _spelled(hint: Any) -> str:
    """Return a type in words.

    >>> _spelled(float | Literal["spectral"]), _spelled(list[str] | None)
    ('a number or one of spectral', 'a list, each a text or null')
    """
    kind, inner = get_origin(hint), get_args(hint)
    if kind is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if isinstance(kind, type) and issubclass(kind, Mapping):
        return f"a mapping to {_spelled(inner[1])}"
    if isinstance(kind, type) and issubclass(kind, Sequence):
        return f"a list, each {_spelled(inner[0])}"
    if inner:
        return " or ".join(dict.fromkeys(_spelled(each) for each in inner))
    return _WORDS.get(hint) or str(getattr(hint, "__name__", hint))
