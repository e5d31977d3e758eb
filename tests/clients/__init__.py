"""Other people's clients as acceptance tests: each does its ordinary job on a server."""
