"""Costs of a federation: bytes and FLOPs."""
