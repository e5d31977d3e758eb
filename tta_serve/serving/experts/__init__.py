"""The experts of a replica: at its start, and while they change.

startup           a config, checked against what is on disk
live_experts      the experts that are served, changed while requests run
view              what a request sees of the library
expert_facts      what is known of the experts besides their weights
example_sources   what policies know of each expert: prompts, pinned requests, or nothing yet
pinned_requests   requests that pin an expert, read and kept as examples of it
kinship           how alike the experts are
"""
