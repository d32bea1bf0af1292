"""The one module that touches Flower's private names.

Flower ships a message as a tree of *objects* (message, records, arrays, 5 MiB chunks of arrays), each named by the hash
of its bytes and sent once. What is here does the same without a SuperLink, so that bytes can be counted and messages
passed in process.
"""

from collections.abc import Mapping
from typing import cast

from flwr.app import Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.node_pb2 import NodeInfo
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from flwr.supercore import log
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, no_object_id_recompute
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

__all__ = [
    "SUPERLINK_NODE_ID",
    "ErrorCode",
    "NodeInfo",
    "Run",
    "deflate",
    "inflate",
    "log",
    "pack_records",
    "set_identity",
    "set_message_id",
    "through_wire",
    "unpack_records",
    "wire_size",
]


def set_identity(run_id: int) -> None:
    """Make this process the ServerApp of a run, so that ``Message(content, dst_node_id, message_type)`` can be built.

    Inside Flower's runtimes the identity is already set; outside one, building a message raises ``RuntimeError``.

    Parameters
    ----------
    run_id : int
        The run that new messages belong to, at least 0.
    """
    TaskIdentity.task_id = 1
    TaskIdentity.run_id = run_id
    TaskIdentity.node_id = SUPERLINK_NODE_ID


def set_message_id(message: Message, message_id: str) -> None:
    """Name a message, as the SuperLink does when it takes one in."""
    message.metadata.__dict__["_message_id"] = message_id


def deflate(message: Message) -> tuple[str, dict[str, bytes]]:
    """Serialize a message into the objects that Flower transmits.

    Returns
    -------
    object_id : str
        Hash of the message object: the id that a SuperLink gives the message.
    contents : dict of str to bytes
        Every object of the tree by its id, children first. Equal objects appear, and travel, once.
    """
    with no_object_id_recompute():
        objects = get_all_nested_objects(message)
        return message.object_id, {object_id: each.deflate() for object_id, each in objects.items()}


def inflate(object_id: str, contents: Mapping[str, bytes]) -> Message:
    """Build the message that :func:`deflate` took apart, with its id set. ``contents`` is left as it is."""
    message = cast(Message, inflate_object_from_contents(object_id, dict(contents)))
    set_message_id(message, object_id)
    return message


def set_reply_to(reply: Message, message_id: str) -> None:
    """Make a message the reply to another one, by the id of that."""
    reply.metadata.__dict__["_reply_to_message_id"] = message_id


def through_wire(message: Message) -> Message:
    """Return the message as its receiver gets it: every nested object serialized, and built again from bytes."""
    return inflate(*deflate(message))


def wire_size(message: Message) -> int:
    """Count the bytes of all Flower objects of a message: payload and Flower's framing, without HTTP.

    Parameters
    ----------
    message : Message
        With content or with an error; it needs no id.

    Returns
    -------
    int
        Bytes. An array that occurs twice in a message travels once and counts once.
    """
    _, contents = deflate(message)
    return sum(map(len, contents.values()))


def pack_records(records: RecordDict) -> bytes:
    """Serialize records, such as a node's ``context.state``, to bytes."""
    return bytes(recorddict_to_proto(records).SerializeToString(deterministic=True))


def unpack_records(data: bytes) -> RecordDict:
    """Invert :func:`pack_records`."""
    return recorddict_from_proto(ProtoRecordDict.FromString(data))
