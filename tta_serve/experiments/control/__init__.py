"""The life of an experiment in a running server.

lifecycle   what an operator does: define, change, start, stop, and the kill switch
snapshot    what requests read of it, without waiting for the store
watchdog    what is looked at every few seconds: guardrails, bandits, ends, old logs
"""
