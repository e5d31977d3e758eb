"""Routing policies: from a prompt to a mix. Imports `adapters`; knows no server and no engine."""
