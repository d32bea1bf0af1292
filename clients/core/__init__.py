"""Base of the methods on the device: the application, its messages, and the node's state."""
