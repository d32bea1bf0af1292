"""A strategy's memory is data: data classes saved by their fields, as plain numbers, strings and arrays, nested.

Keys of a checkpoint are strings, so keys of other types are written as text: ``7``, and ``2-5`` for a pair.
"""

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, Protocol, get_args, get_origin, get_type_hints


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
    hints = get_type_hints(type(memory))
    for field in fields(memory):
        setattr(memory, field.name, _typed(state[field.name], hints[field.name]))


def lacking(state: Mapping[str, Any], wanted: Mapping[str, Any], nested: Iterable[str] = ()) -> list[str]:
    """Return the keys that a state lacks, dotted; of ``nested`` keys the inner keys count too.

    >>> lacking({"round": 1, "control": {}}, {"round": 1, "once": [], "control": {"met": []}}, ["control"])
    ['once', 'control.met']
    """
    absent = [key for key in wanted if key not in state]
    inside = [f"{key}.{field}" for key in nested if key in state for field in wanted[key] if field not in state[key]]
    return absent + inside


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {_text(key): _plain(each) for key, each in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    return value


def _text(key: Any) -> str:
    return "-".join(map(str, key)) if isinstance(key, tuple) else str(key)


def _typed(value: Any, hint: Any) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is dict:
        keys, values = arguments
        return {_key(key, keys): _typed(each, values) for key, each in value.items()}
    if origin in (set, frozenset, tuple, list):
        each_hint = arguments[0] if arguments else Any
        return origin(_typed(each, each_hint) for each in value)
    return bytes(value) if hint is bytes else value


def _key(text: str, hint: Any) -> Any:
    if get_origin(hint) is tuple:
        return tuple(int(part) for part in text.split("-"))
    return int(text) if hint is int else text


class Remembering(Protocol):
    """A strategy or a part."""

    memory: Any


def saved_memories(owners: Iterable[Remembering]) -> dict[str, Any]:
    """Return the memories of a strategy and its parts: fields in one dict, or under a part's ``saved_as``."""
    state: dict[str, Any] = {}
    for owner in owners:
        if owner.memory is not None:
            key = getattr(owner, "saved_as", "")
            state |= {key: saved(owner.memory)} if key else saved(owner.memory)
    return state


def restore_memories(owners: Iterable[Remembering], state: Mapping[str, Any]) -> None:
    """Restore the dict of :func:`saved_memories`."""
    for owner in owners:
        if owner.memory is not None:
            key = getattr(owner, "saved_as", "")
            restore(owner.memory, state[key] if key else state)
