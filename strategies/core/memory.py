"""A strategy's memory is data: data classes saved by their fields, as plain numbers, strings and arrays, nested.

Keys of a checkpoint are strings, so keys of other types are written as text: ``7``, and ``2-5`` for a pair.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")
Memories = Iterable[
    tuple[str, Any]
]  # data classes and their keys in a checkpoint; "": their fields' names are the keys


def saved(memory: Any) -> dict[str, Any]:
    """Return the fields of a data class as a checkpoint holds them.

    Examples
    --------
    >>> from dataclasses import dataclass
    >>> @dataclass
    ... class Links:
    ...     sizes: dict[tuple[int, int], int]
    ...     away: set[int]
    >>> saved(Links({(0, 1): 9}, {3, 2}))
    {'sizes': {'0-1': 9}, 'away': [2, 3]}
    """
    return {field.name: _plain(getattr(memory, field.name)) for field in fields(memory)}


def restore(memory: Any, state: Mapping[str, Any]) -> None:
    """Set the fields of a data class from the dict of :func:`saved`, by the fields' types.

    Raises
    ------
    KeyError
        A field is missing.
    """
    vars(memory).update(vars(_restored(type(memory), state)))


def saved_memories(memories: Memories) -> dict[str, Any]:
    """Return several data classes as one dict of a checkpoint."""
    state: dict[str, Any] = {}
    for key, memory in memories:
        state |= {key: saved(memory)} if key else saved(memory)
    return state


def restore_memories(memories: Memories, state: Mapping[str, Any]) -> None:
    """Restore the dict of :func:`saved_memories`."""
    for key, memory in memories:
        restore(memory, state[key] if key else state)


def lacking(memories: Memories, state: Mapping[str, Any]) -> list[str]:
    """Return the keys that a state lacks to restore memories, dotted where they are of a data class in it.

    >>> from flsparse.metering.ledger import Ledger
    >>> lacking([("", Ledger()), ("mail", Ledger()), ("log", Ledger())], {"lines": {}, "mail": {"traffic": {}}})
    ['traffic', 'mail.lines', 'log']
    """
    kinds: dict[str, Any] = {}
    for key, memory in memories:
        kinds |= {key: type(memory)} if key else _types_of(type(memory))
    return list(_absent(kinds, state))


def _absent(kinds: Mapping[str, Any], state: Mapping[str, Any], inside: str = "") -> Iterator[str]:
    for key, kind in kinds.items():
        if key not in state:
            yield inside + key
        elif isinstance(kind, type) and is_dataclass(kind):
            yield from _absent(_types_of(kind), state[key], f"{inside}{key}.")


def _types_of(kind: type[Any]) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return saved(value)
    if isinstance(value, Mapping):
        return {_text(key): _plain(each) for key, each in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    return value


def _text(key: Any) -> str:
    return "-".join(map(str, key)) if isinstance(key, tuple) else str(key)


def _restored(kind: type[T], state: Mapping[str, Any]) -> T:
    return kind(**{name: _typed(state[name], hint) for name, hint in _types_of(kind).items()})


def _typed(value: Any, hint: Any) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if isinstance(hint, type) and is_dataclass(hint):
        return _restored(hint, value)
    if origin is dict:
        keys, values = arguments
        return {_key(key, keys): _typed(each, values) for key, each in value.items()}
    if origin in (set, frozenset, tuple, list):
        each_hint = arguments[0] if arguments else Any
        return origin(_typed(each, each_hint) for each in value)
    return bytes(value) if hint is bytes else value


def _key(text: str, hint: Any) -> Any:
    if get_origin(hint) is tuple:
        kinds = get_args(hint)
        parts = text.split("-", len(kinds) - 1)
        return tuple(_key(part, kind) for part, kind in zip(parts, kinds, strict=True))
    return int(text) if hint is int else text
