"""The engine as the replica beside it sees it: run requests as mixes, probe, ask the workers.

engine_client   runs prompts as mixes that are known or decided inside the pass, and probes
placement       finds where in a prompt a mix begins to act
worker_rpc      asks all workers at once: load and unload experts, install policies, take probes
usage           counts the tokens that a request takes
"""
