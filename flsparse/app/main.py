"""The console script: what it takes to leave with one line and an exit code, whatever happens and however early.

Exit codes: 0 done, 1 a run failed, 2 the configuration is impossible, 130 interrupted.
"""

import os
import sys


def main() -> None:
    """Run the command line of the process; leaves through ``sys.exit``."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
    try:
        from flsparse.app.command import run  # in here, since it takes a second: Ctrl-C ends that, too

        code = run(sys.argv[1:])
    except KeyboardInterrupt as stopped:
        if not stopped.args:  # else it has been said where the run stands
            print("flsparse: stopped before the first round; there is nothing to go on with", file=sys.stderr)
        code = 130
    sys.exit(code)
