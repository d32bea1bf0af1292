"""What crosses a cut as payloads: activations on the way up, gradients back."""
