"""The machine: what it is, what it has left, and how much of it to use."""
