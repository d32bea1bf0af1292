"""Base of the methods' servers: the round loop, and the messages of a round."""
