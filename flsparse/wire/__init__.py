"""Messages and mirrors, for both sides: how they are written and read."""
