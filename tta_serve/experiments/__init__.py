"""A/B tests of policies, from their definition to a verdict.

The rooms, each of which imports only those above it:

statistics   pure arithmetic of experiments: confidence sequences, CUPED, off-policy estimates
design       what an experiment is, who gets which arm, and how many units it takes
analysis     from the logs to comparisons, guardrails, a verdict and a report
control      the life of an experiment: start, change, stop, watch, and the kill switch

They share `errors`. What happens inside a request (the journal, the shadow policy) is
`tta_serve.serving.trials`; the rows are kept by `tta_serve.store`.
"""
