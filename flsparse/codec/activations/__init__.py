"""Payloads of a cut layer: activations on the way up, gradients back."""
