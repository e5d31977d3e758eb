"""Experiments in a request: which arm, what is recorded, what runs in its shadow."""
