"""Reports of runs: tables, plots and the live display."""
