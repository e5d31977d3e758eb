"""Experiments on policies in a running server, and what came of them."""
