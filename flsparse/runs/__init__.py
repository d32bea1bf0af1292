"""A run on disk: its folder, and the state from which it goes on."""
