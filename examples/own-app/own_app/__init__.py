"""A Flower app whose data and network are functions of its own."""
