"""The algorithms of `tta search`.

registry            their names
cma_es              a normal distribution that follows the best: Evolutionary Merging, LoraHub
frank_wolfe         one expert more at a time: FW-Merging
halving             many candidates on few questions, the better ones on more
response_theory     few questions that stand for all: MERGE^3
pruning             experts of no use left out first: Evo-Merging
competition         who answers what others do not: M2N2
nsga2               a population over the front of all tasks, and the front's volume
quality_diversity   an archive of merges that differ in what they can do: CycleQD
"""
