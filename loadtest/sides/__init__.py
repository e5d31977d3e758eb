"""The engines and servers that are compared.

engines           four engines, offline: base, stock, inplace, mixture
stock             a mix as one PEFT folder, for vLLM's own multi-LoRA
stock_extension   in the worker of `stock`: the bytes of its slots
inplace           in the worker of `inplace`: dense merges into writable weights
routed            the mixture's engine with a policy that decides inside the pass
session           what engines are started with
servers           three servers, over HTTP: vLLM's, Ray's and ours
ray_direct        Ray's own server, started with direct streaming
"""
