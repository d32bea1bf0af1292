"""Replies that Flower's strategies can take: alike in their records, their arrays and their metrics.

Flower's own aggregation ends the run where one reply is unlike the others.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flwr.app import MetricRecord, RecordDict

from flsparse.codec import Specs
from flsparse.nets.exact import small
from flsparse.strategies.core.exchange import Reply
from flsparse.strategies.core.measures import numbers_of, weighted_means

Forms = dict[str, str]  # what a reply holds: its shape by "array 'name'", and "there" by "record 'name'"


def forms_of(content: RecordDict, arrays: Mapping[str, np.ndarray], sent: Specs, records: Sequence[str]) -> Forms:
    """Return the forms of a reply.

    Parameters
    ----------
    content : RecordDict
        Of the reply, as it came.
    arrays : Mapping[str, np.ndarray]
        Decoded arrays of the packed record, by name.
    sent : Mapping[str, ArraySpec]
        Specs of the model that the node was sent.
    records : Sequence[str]
        Names of the records that they are of.
    """
    forms = sent_forms({}, [*content.array_records, *records])
    for name, array in arrays.items():
        form = _form(array.shape, array.dtype.name)
        if name not in sent:
            form += f" {array.dtype}"  # Flower adds up in the dtype of the first
        if (name not in sent or sent[name].shape != array.shape) and not small(array).all():
            form += " with infinities"
        forms[f"array {name!r}"] = form
    for record, beside in content.array_records.items():
        if record not in records:
            forms |= {f"array '{record}:{name}'": _form(array.shape, array.dtype) for name, array in beside.items()}
    return forms


def sent_forms(sent: Specs, records: Sequence[str]) -> Forms:
    """Return the forms of a model that is sent."""
    arrays = {f"array {name!r}": _form(spec.shape, spec.dtype.name) for name, spec in sent.items()}
    return arrays | {f"record {record!r}": "there" for record in records}


def usual_forms(replies: Sequence[Forms], sent: Forms) -> Forms:
    """Return the forms that most replies have; where they are of two minds, the form that was sent.

    Examples
    --------
    >>> whole, part = {"array 'w'": "(3,)", "array 'b'": "(2,)"}, {"array 'b'": "(2,)"}
    >>> usual_forms([whole, part], sent=whole) == whole, usual_forms([whole, part, part], sent=whole) == part
    (True, True)
    """
    counts = Counter(item for forms in replies for item in forms.items())
    holders = Counter(label for forms in replies for label in forms)
    usual = {label: form for (label, form), count in counts.items() if 2 * count > len(replies)}
    undecided = [label for label, count in holders.items() if label not in usual and 2 * count >= len(replies)]
    return usual | {label: sent[label] for label in undecided if counts[label, sent.get(label, "")]}


def odd_form(own: Forms, usual: Forms, sent: Forms, *, strict: bool) -> str | None:
    """Return the first thing about a reply that a strategy cannot take, in words; None where there is none.

    Parameters
    ----------
    own, usual, sent : dict[str, str]
        Forms of the reply, of most replies, and of the model that was sent.
    strict : bool
        The strategy is Flower's own, and takes nothing but what is usual. Any other may have its own idea: an array
        is to have the shape that the node was sent, or that most return.
    """
    odd = [label for label, form in own.items() if usual.get(label) != form]
    if strict:
        odd += [label for label in usual if label not in own]
    else:
        odd = [label for label in odd if label.startswith("array") and sent.get(label) != own[label]]
    if not odd:
        return None
    wanted = f"but {usual[odd[0]]} in most replies" if odd[0] in usual else "unlike in most replies"
    return f"{odd[0]} is {own.get(odd[0], 'missing')}, {wanted}"


def set_aside(replies: list[Reply], weighted_by_key: str) -> dict[str, float]:
    """Leave in every reply one metric record, of the metrics that all have, finite; return the means of the others.

    Parameters
    ----------
    replies : list[Reply]
        With a weight each. They are changed.
    weighted_by_key : str
        Metric that is the weight.
    """
    common: set[str] | None = None
    homes: Counter[str] = Counter()
    for reply in replies:
        forms = {_kind(key, value) for key, value in _metrics(reply).items() if _finite(value)}
        common = forms if common is None else common & forms
        homes.update(name for name, record in reply.content.metric_records.items() if weighted_by_key in record)
    home, rows = homes.most_common(1)[0][0], []
    for reply in replies:
        kept = {key: value for key, value in _metrics(reply).items() if _kind(key, value) in (common or ())}
        numbers = numbers_of(reply, weighted_by_key)
        rows.append((numbers[weighted_by_key], {key: x for key, x in numbers.items() if key not in kept}))
        for name in list(reply.content.metric_records):
            del reply.content[name]
        reply.content[home] = MetricRecord(kept)
    return weighted_means([(weight, numbers) for weight, numbers in rows if weight > 0])


def _form(shape: Sequence[int], dtype: str) -> str:
    return "bytes" if dtype == "uint8" else str(tuple(shape))  # such as those of trees have any length


def _metrics(reply: Reply) -> dict[str, Any]:
    return {key: value for record in reply.content.metric_records.values() for key, value in record.items()}


def _kind(key: str, value: Any) -> str:
    return f"{key}[{len(value)}]" if isinstance(value, list) else key


def _finite(value: Any) -> bool:
    return bool(np.isfinite(value).all())
