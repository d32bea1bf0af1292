"""What a broadcast costs against what its node holds, against the model of the seed, and whole: does a choice pay?

    python benchmarks/downlink_bases.py experiment=demo strategy=sparsyfed

Arguments are overrides, as of ``flsparse``; the run is in this process. Each model that the server sends is coded in
all three ways; printed are bytes, and how often another way than the one that is taken would have been smaller.
"""

import sys
from collections import defaultdict
from collections.abc import Callable

from sweep import markdown, run_here

from flsparse.codec import exact_names
from flsparse.strategies.core.downlink import Broadcast, Downlink

held: dict[int, list[int]] = defaultdict(list)  # bytes for nodes that hold something, by model
others: dict[int, tuple[int, int]] = {}  # bytes against the seed's model, and of the whole model
models: list[object] = []


def watch(to: Callable[..., Broadcast]) -> None:
    """Code every model that is sent in the other ways, too."""

    def sending(self: Downlink, reference_id: str, *, seeded: bool = False) -> Broadcast:
        sent = to(self, reference_id, seeded=seeded)
        if not models or models[-1] is not sent.model:
            models.append(sent.model)
            seed, exact = self._seed(), exact_names(self._specs)
            against_seed = self.delta_codec.encode(sent.model, reference=seed, exact=exact)
            others[len(models)] = len(against_seed), len(self.codec.encode(sent.model, exact=exact))
        if reference_id and sent.coded_against == reference_id:
            held[len(models)].append(len(sent.payload))
        return sent

    Downlink.to = sending  # type: ignore[method-assign]


def main() -> None:
    """Run, and print the table."""
    watch(Downlink.to)
    run_here(sys.argv[1:])
    rows, beaten = [], 0
    for at, (against_seed, whole) in others.items():
        own = held[at]
        beaten += sum(size > min(against_seed, whole) for size in own)
        if at in (2, 3, 5, 10, 20, len(models)):
            span = f"{min(own):,} to {max(own):,}" if own else ""
            rows.append([at, f"{len(own)}", span, f"{against_seed:,}", f"{whole:,}"])
    print(markdown(["model", "nodes that hold one", "against it", "against the seed's", "whole"], rows))
    print(f"\n{beaten} of {sum(map(len, held.values()))} broadcasts would have been smaller in another way")


if __name__ == "__main__":
    main()
