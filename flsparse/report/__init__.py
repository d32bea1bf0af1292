"""What came out of a run: its folder, tables and the live display."""
