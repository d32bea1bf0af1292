"""Torch modules: their arrays, batch-norm statistics, cut layers and valleys."""
