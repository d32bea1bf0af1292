"""What both sides share: the messages, how they are read, and the mirrors that replies are coded against."""
