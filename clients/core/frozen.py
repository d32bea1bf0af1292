"""Frozen arrays on a device: those that it makes by itself, or those that the server sent it once."""

from flwr.app import ConfigRecord, RecordDict
from torch import nn

from flsparse.clients.core.state import NodeState
from flsparse.codec import PayloadError, decode, specs_of
from flsparse.nets.arrays import Arrays
from flsparse.nets.frozen import digest
from flsparse.nets.hidden import load_hidden
from flsparse.wire.messages import FROZEN, RECORD, opaque_payload, record_of


def load_frozen(model: nn.Module, state: NodeState) -> None:
    """Put the frozen arrays that the server sent, if any, in the place of those that the node's task made."""
    load_hidden(model, state.get(FROZEN) or {})


def frozen_digest(own: str, state: NodeState) -> str:
    """Return the hash of a node's frozen arrays; `own` is that of those it makes by itself, empty where it has none."""
    sent = state.get(FROZEN) if own else None
    return own if sent is None else digest(sent)


def take_frozen(content: RecordDict, own: Arrays, state: NodeState) -> RecordDict:
    """Keep the frozen arrays that a message brings; return the reply's content, their hash.

    Parameters
    ----------
    content : RecordDict
        Of the message.
    own : dict[str, np.ndarray]
        The frozen arrays that the node makes by itself, whose names and shapes the sent ones have.
    state : NodeState
        Keeps them.

    Raises
    ------
    PayloadError
        They are not those of the node's model, or not those that the message names.
    ValueError
        They are larger than what the node's owner lets it keep.
    """
    specs = specs_of(own, list(own))
    arrays, asked = decode(opaque_payload(content) or b"", like=specs), str(record_of(content).get(FROZEN))
    if (found := digest(arrays)) != asked:
        raise PayloadError(f"the frozen arrays that came have the hash {found}, not {asked} as they should")
    state.put(FROZEN, arrays)
    return RecordDict({RECORD: ConfigRecord({FROZEN: found})})
