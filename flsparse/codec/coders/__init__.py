"""Bits on the wire: how integers, bytes and positions become few bytes, without loss."""
