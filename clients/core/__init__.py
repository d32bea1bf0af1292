"""What the methods' devices stand on: the application, its messages, and what a node keeps."""
