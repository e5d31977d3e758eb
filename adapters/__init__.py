"""Experts and the arithmetic of mixing and merging them, in torch, without server or engine.

It imports no other of our packages.

coefficient   how much of one expert a mix holds
deltas        what an expert changes, weight by weight
errors        what can be wrong with somebody's expert, library, mix or merge
expert        an expert that slots can serve: its low-rank factors
low_rank      canonical factors, and the nearest delta of a lower rank
mix           how much of each expert one request uses
bank          the experts that are served, and how much of each a token or a layer takes
files         tensors in files, and what people keep experts in
library       a folder of experts with versions, manifests and entries
merge         29 methods that make one expert of several
"""
