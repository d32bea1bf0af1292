"""What a federation cost: bytes, FLOPs and, later, time and energy."""
