"""Mixture slots in vLLM: per request a mix of experts, as a row of coefficients.

Everything that touches vLLM's internals is in here. Three processes meet:

    replica        client/   binds mixes to requests, probes, asks the workers
    engine core    worker/vllm_hooks, which lets decisions travel with vLLM's outputs
    workers        worker/   slots, banks, and what each step's tokens use of them

and say to each other:

wire          orders, which travel with requests, and reports, which come back
policy_wire   policies on their way to the workers that decide by them
options       the engine arguments that switch mixture slots on

The README beside this file tells how it works.
"""
