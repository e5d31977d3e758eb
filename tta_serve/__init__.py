"""The server: its request path, its engine, its experiments and its commands.

config        all that a server is told
protocol      what clients and operators send and get, as models
metrics       every metric
exceptions    what several parts raise

cli/          the commands of `tta`
evaluation/   judging policies on held-out questions
serving/      the request path
experiments/  A/B tests of policies
store/        the database
engine/       mixture slots in vLLM
offline/      training and measuring without a server
reporting/    tables and plots
"""
