"""Static merges: one expert made of several, one weight at a time, before anything is served.

method         one row of the table of merges: a function, its options and its rules
registry       the table of all methods, and of those that are not implemented
merged         the deltas of a merge, for which it calls the method weight by weight
average        sums of the experts' deltas, and points between experts and base
sparse         methods that first leave out most of each delta
spectral       methods on singular values and vectors
rotate         OrthoMerge, a mean of the experts' rotations of the base
factors        methods on the factors a and b themselves
calibrated     methods weighted by what the experts do on calibration inputs
twin           Twin-Merging: a shared expert, and what each knows beyond it
interference   how much experts get in each other's way
"""
