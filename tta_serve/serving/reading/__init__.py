"""What a request says: its fields, its names, its wish.

request      what a request asks, from its body and headers
catalog      the names that a request may use, and the wish that it has
routes       which of vLLM's routes are served, and what their bodies may hold
validation   what pydantic found wrong, in one sentence
"""
