"""In vLLM's workers: slots, banks, and what each step's tokens use of them.

How vLLM is entered:

plugin             vLLM's entry point, which puts the mixture manager where vLLM builds its own
vllm_hooks         the functions of vLLM that are wrapped
prefix_keys        the keys of the prefix cache, for mixes that act from a token on
extension          the methods that workers gain, for the server to call
mixture_manager    what vLLM's model runners call, in place of vLLM's own LoRA manager

What the manager is made of:

loaded_model       a model with coefficients, banks, observers, and a seat at every site
step_planner       gives mixes their slots, and tells the model what a step's tokens use
expert_lifecycle   loads and unloads experts

What those are made of:

sites              the layers to which experts may add
placed_expert      a rank's share of an expert's factors
slots              which mix sits in which row of the coefficient table
coefficient_table  the mixes of all slots, at every place of the model
step_state         what the tokens of a step use of the table
mixture_layer      the seam in vLLM's layers, where y += B (c * (A x)) is added
placed_one_bit     a rank's share of a one-bit expert's signs and vectors
norm_sites         the norms whose weights experts may change
norm_seat          the seam behind vLLM's norms, for what one-bit experts change of them
logits             the seam in vLLM's output head, and which tokens logits are of
banks              the banks of the experts in use
residents          the experts that are ready, within a capacity, and how they are read
inline_routing     reads users' turns inside the pass, and decides their mixes
head_table         the policies that decide inside the pass
probe_seats        which observer of probes sits where

probes/ has the observers, cpu/ the bank's product on a CPU, dense/ what is merged into weights, and
runners/ the seams of vLLM's two model runners.
"""
