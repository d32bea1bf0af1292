"""What the methods' servers stand on: the loop of rounds, and what is sent and received in it."""
