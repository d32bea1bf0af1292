"""Where the bytes of a run's payloads go: header, positions, values, dense arrays; by direction and third of the run.

    python benchmarks/payload_parts.py experiment=demo strategy=sparsyfed

Arguments are overrides, as of ``flsparse``; the run is in this process. Every message's payload is looked at where the
server sends or decodes it. The same command in another checkout says what its format needs: equal overrides give the
same models. The last line is the CPU time of an encode in the last third of the run (FLSPARSE_KERNEL=0: in NumPy).
"""

import sys
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
from sweep import markdown, run_here

from flsparse.codec import Codec, payload_info
from flsparse.strategies.core.courier import Wire
from flsparse.wire.messages import packed_payload

PARTS = ("header", "positions", "values", "dense", "lossless")
seen: dict[str, list[tuple[int, dict[str, int]]]] = defaultdict(list)

encode_s: list[float] = []


def look(direction: str, server_round: int, content: Any) -> None:
    """Note the sections of a message's payload."""
    if (payload := packed_payload(content)) is not None:
        seen[direction].append((server_round, payload_info(payload).sections))


def watch(packed: Callable[..., Any], update: Callable[..., Any], encode: Callable[..., bytes]) -> None:
    """Look at what the server packs and at the updates that it decodes, and time every encode."""

    def encoding(self: Codec, *arguments: Any, **settings: Any) -> bytes:
        start = time.thread_time()
        payload = encode(self, *arguments, **settings)
        encode_s.append(time.thread_time() - start)
        return payload

    def packing(self: Wire, message: Any, node: Any, exchange: Any) -> Any:
        out = packed(self, message, node, exchange)
        look("downlink", exchange.server_round, out.content)
        return out

    def decoding(self: Wire, reply: Any, *arguments: Any, **settings: Any) -> Any:
        look("uplink", reply.server_round, reply.content)
        return update(self, reply, *arguments, **settings)

    Wire.packed, Wire.update, Codec.encode = packing, decoding, encoding  # type: ignore[method-assign]


def main() -> None:
    """Run, and print the table."""
    watch(Wire.packed, Wire.update, Codec.encode)
    run_here(sys.argv[1:])
    rows = []
    for direction, payloads in seen.items():
        last = max(server_round for server_round, _ in payloads)
        for third, name in enumerate(("first", "second", "last")):
            own = [parts for at, parts in payloads if (at - 1) * 3 // last == third and at]
            mean = [np.mean([parts[part] for parts in own]) for part in PARTS]
            rows.append(
                [f"{direction}, {name} third", f"{len(own)}", f"{sum(mean):,.0f}", *(f"{m:,.0f}" for m in mean)]
            )
        total = sum(sum(parts.values()) for _, parts in payloads)
        rows.append([f"{direction}, all", f"{len(payloads)}", f"{total / len(payloads):,.0f}"])
    print(markdown(["", "payloads", "bytes", *PARTS], rows))
    late = encode_s[-len(encode_s) // 3 :]
    print(f"\nencode, last third: median {1e3 * np.median(late):.1f} ms of {len(late)}")


if __name__ == "__main__":
    main()
