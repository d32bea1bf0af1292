"""What one broadcast of a trained model costs: a node that is new, and one that holds the previous broadcast.

    flsparse strategy=sparsyfed ... fraction_train=1.0 output_dir=RUN && python benchmarks/downlink.py RUN

The run must be one of full participation: there, every node holds the previous broadcast, and the run's own ledger
says what that costs. The new node is what the last checkpoint's model costs without a reference.
"""

import argparse
from pathlib import Path

import numpy as np
from sweep import Run, markdown

from flsparse.codec import Codec
from flsparse.runs.folder import read_checkpoint


def main() -> None:
    """Print both ratios for each run folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    rows = []
    for folder in parser.parse_args().runs:
        run, checkpoint = Run(folder), read_checkpoint(folder)
        dense = run.summary["dense_bytes_per_model"]
        new = len(Codec(values="int8").encode(checkpoint["arrays"]))
        held = dense / run.steady_ratio("downlink")
        framing = (run.series("downlink_wire_bytes") - run.series("downlink_bytes")) / run.series("replies")
        sparsity = f"{run.summary['final_sparsity']:.1%}"
        row = [run.summary["strategy"], sparsity]
        for size, around in ((new, framing[0]), (held, framing[-5:].mean())):  # all are new in the first round
            row += [f"{size:,.0f} B", f"{dense / size:.0f}x", f"{dense / (size + around):.0f}x"]
        rows.append([*row, f"{np.mean(run.series('downlink_ratio')[:10]):.0f}x"])
    header = ["strategy", "sparsity", "new node", "ratio", "with framing"]
    header += ["holds the previous one", "ratio", "with framing", "first 10 rounds"]
    print(markdown(header, rows))


if __name__ == "__main__":
    main()
