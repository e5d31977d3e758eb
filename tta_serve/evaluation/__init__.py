"""`tta eval`: every policy, and what it is to be compared with, on the same held-out questions.

questions          what is asked, and what is wanted
scoring            from an answer to its score
match_rules        how a short answer is cut out of a long one and compared
harness_tasks      tasks of lm-evaluation-harness as questions
harness_format     what such a task may say
harness_files      its YAML and its data
harness_documents  what its templates make of a row of the data
arms               who answers: the base, experts, merges, entries, policies
merge_variants     the ways in which a static merge is tried, and the one that is judged
merges             static merges of all experts, as a library to serve
plan               which arm is asked which questions
local_server       a server of our own on this machine
server_client      the running server, asked over HTTP
session            what is asked of one server, in which order
divergence         how far an arm moves the base on everyday prompts
run                two servers: all but the merges, then the merges
results            what came of it
intervals          means, ratios and differences with their bootstrap intervals
figures            the figures of every arm and slice
verdicts           which policies earn their time
tables             the report's tables
report             the report, and the line of JSON
plots              the report's pictures
"""
