"""Torch modules, seen from outside: their arrays, their batch norm, where they are cut."""
