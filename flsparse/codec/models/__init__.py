"""Models and their changes as payloads: what is kept, how values are coded, and back."""
