"""The banks' products on a CPU, which skip what is zero.

sparse_bank    a layer's factors, and the coefficients of a step, as the loops read them
loops          the loops over both, compiled by numba once a machine
vector_code    the innermost products, written in LLVM's own terms

lookup_bank    a layer's signs of one-bit experts, as their loops read them
lookup_loops   the loops over these, compiled likewise
lookup_code    the look-ups of signed sums, written in LLVM's own terms

call_records   what both kinds of loops are given for a layer
threads        how all loops share their work among torch's threads
"""
