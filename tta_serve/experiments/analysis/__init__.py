"""From the logs of an experiment to its report, in the order of the walk.

tallies          sums of a metric by arm, from the logs
comparisons      treatments against the control, from tallies alone
guardrails       which treatments do harm
sample_ratio     whether the arms have the units that they should have
verdict          what the figures mean, in sentences
analyse          all of the above as one report
replay           what another policy would have been worth on the logged traffic
replay_targets   the policies that a log can be replayed for
results          the values that all of these return
report           the report as Markdown, tables and JSON
plots            the report's pictures
formatting       numbers as text
"""
