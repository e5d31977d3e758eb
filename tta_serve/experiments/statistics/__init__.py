"""The statistics of experiments, as pure functions: no store, no server.

moments                  mergeable counts, means and central second moments of an arm
sequential               confidence sequences and p-values that hold however often one looks
multiplicity_and_srm     Holm's correction, and the test of the split (sample ratio mismatch)
cuped                    variance reduction by values from before the experiment
ratio                    metrics that are ratios of sums, by the delta method
offpolicy                what another policy would have been worth on logged traffic
"""
