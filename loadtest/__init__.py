"""Benchmarks, on this machine alone.

`python -m loadtest engine` compares four ways of serving a different merge to every request, offline:

workload.py   what is asked: shapes, prompts, mixes
sides.py      the four engines: base, stock, inplace, mixture
stock.py      a mix as one PEFT folder, for vLLM's own multi-LoRA
inplace.py    in the worker of `inplace`: dense merges into writable weights
probes.py     in the worker of `stock`: bytes of its slots
copies.py     libraries of any number of experts, made from the demo's six
measure.py    interleaved repeats, medians, ratios
parts.py      the parts of the benchmark: cells, scaling, first token
engine.py     the commands: what to run, in which order
report.py     machine, tables, the line of JSON

`python -m loadtest edge` (edge.py, servers.py, direct.py, processes.py, client.py): the way from
client to engine over HTTP, beside vLLM's own server and Ray's direct streaming.
`python -m loadtest library` (library.py, library_job.py, checkpoints.py): adding and merging, beside mergekit.
`python -m loadtest lifecycle` (lifecycle.py): what a load costs those who are being answered.
`python -m loadtest kernel` (kernel.py, scale_expand.py): on a GPU, one layer's delta, ours and vLLM's.
`python -m loadtest profile` (profile.py): where a step's time goes, by operator.
`python -m loadtest soak` (soak.py) serves the demo, and changes its library while many ask: every answer is checked.
"""
