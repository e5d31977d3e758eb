"""The experts that are served, and how much of each a token or a layer takes."""
