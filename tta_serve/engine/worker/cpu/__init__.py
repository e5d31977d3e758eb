"""The bank's product on a CPU, which skips what is zero.

sparse_bank   a layer's factors, and the coefficients of a step, as the loops read them
loops         the loops over both, compiled by numba once a machine
vector_code   the innermost products, written in LLVM's own terms
"""
