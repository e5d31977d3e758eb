"""Mixture slots in vLLM: everything that touches vLLM's internals, behind `wire`, `options` and `client`.

wire.py      a request's mix as a LoRARequest, which vLLM carries to the worker with the request
options.py   engine arguments that switch the plugin on
client.py    in the server: bind a mix to an OpenAI request, probe
workers.py   in the server: load and unload experts, read what the workers hold
worker.py    in the worker: the methods that `workers.py` calls
plugin.py    in every vLLM process: puts `manager.MixtureManager` where vLLM builds its LoRA manager
manager.py   in the worker: slots, and what each step's tokens use
residents.py in the worker: experts kept ready within a capacity, read beside the steps
banks.py     in the worker: banks of the experts in use
attach.py    in the worker: a bank for every linear layer that an expert touches
probes.py    in the worker: what is observed of which probe, and where; observer.py, readout.py and watch.py do it
step.py      in the worker: the coefficient table, and what the tokens of a step use of it
mixture.py   in the worker: the seam in vLLM's layers, where y += B (c * (A x)) is added
sparse.py    in the worker, on a CPU: that product without what is zero; its loops are in sparse_kernel.py
"""
