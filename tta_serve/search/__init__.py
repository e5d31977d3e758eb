"""`tta search`: coefficients of a merge, found by task scores on a running engine.

space          what is searched: the coefficients of experts, on the server's grid
searcher       what all algorithms are to the loop: ask, score, tell
algorithms     the algorithms, and their registry
objectives     what the answer of a mix is worth
judge          a model that rates answers
split          which questions are searched on, and which are held out
journal        every candidate that was scored, on disk
scorebook      each mix is asked each question once, many at a time
search_loop    the loop
server_facts   what a search must know of a server
holdout        what was found, beside what it must beat
tune_scales    density and scale of each static merge, for `tta eval`
search_job     one search, from a server's address to what was found
report         tables, the line of JSON, the entry
front_store    a front, as the policy `pareto` reads it
plots          the plot of a search
errors         what can go wrong
"""
