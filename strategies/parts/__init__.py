"""What goes with any method on the server."""
