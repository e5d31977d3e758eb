"""The engines and servers that are compared.

engines           four engines, offline: base, stock, inplace, mixture
stock             mixes as PEFT folders, for vLLM's own multi-LoRA
stock_extension   in the worker of `stock`: the bytes of its slots
merged_checkpoint  a merge written out and loaded into a fresh engine
inplace           in the worker of `inplace`: dense merges into writable weights
in_turn           middleware of vLLM's server that merges so for one request at a time
dense_engine      ours with dense experts, and a library of random ones
dense_extension   in its worker: timed switches
routed            the mixture's engine with a policy that decides inside the pass
conversations     conversations on it, held turn by turn
session           what engines are started with
servers           servers over HTTP: vLLM's, with adapters or merging in place too, Ray's and ours
grown_servers     ours with more experts or tenants, or one option otherwise
kept_server       ours, started again whenever it ends, and its database
checked_load      clients that know the right answers
ray_direct        Ray's own server, started with direct streaming
"""
