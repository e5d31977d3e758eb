"""The experts of a replica: at its start, and while they change."""
