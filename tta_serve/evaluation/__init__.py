"""`tta eval`: every policy, and what it is to be compared with, on the same held-out questions.

questions.py    what is asked, and what is wanted
scoring.py      from an answer to its score
arms.py         who answers: the base, experts, merges, entries, policies
merges.py       static merges of all experts, as a library to serve
plan.py          which arm is asked which questions
ask.py          the running server, asked over HTTP
session.py      what is asked of one server, in which order
divergence.py   how far an arm moves the base on everyday prompts
run.py          two servers: all but the merges, then the merges
results.py      what came of it
intervals.py    means, ratios and differences with their bootstrap intervals
figures.py      the figures of every arm and slice
verdicts.py     which policies earn their time
tables.py       the report's tables
report.py       the report, the line of JSON
pictures.py     the report's pictures
cli.py          the command
"""
