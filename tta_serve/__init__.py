"""The server: config, CLI, Ray Serve application, HTTP contract, metrics; `engine/` is all that touches vLLM's internals."""
