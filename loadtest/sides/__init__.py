"""The engines and servers that are compared.

engines           four engines, offline: base, stock, inplace, mixture
stock             a mix as one PEFT folder, for vLLM's own multi-LoRA
stock_extension   in the worker of `stock`: the bytes of its slots
merged_checkpoint  a merge written out and loaded into a fresh engine
inplace           in the worker of `inplace`: dense merges into writable weights
dense_engine      ours with dense experts, and a library of random ones
dense_extension   in its worker: timed switches
routed            the mixture's engine with a policy that decides inside the pass
conversations     conversations on it, held turn by turn
session           what engines are started with
servers           three servers, over HTTP: vLLM's, Ray's and ours
kept_server       ours, started again whenever it ends, and its database
checked_load      clients that know the right answers
ray_direct        Ray's own server, started with direct streaming
"""
