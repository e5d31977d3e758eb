"""The policies, one file each; `router.registry` lists them by name.

static           the same mix for every prompt: given, or learned beforehand
pareto           a merge of a front, by the preference that a request brings
recombined       an entry of recombined components, by the tasks that a selector sees in a prompt
made_entries     the files of entries that those two read
random_control   experts drawn by chance, the arm to beat
selector         the base of policies that say which experts fit a prompt
selectors        those that others may ask for a shortlist, by name
retrieval        the experts whose example prompts are nearest
gate             a trained router, with retrieval for experts that it has not met
twin             what experts share is always on, and a selector adds what each knows beyond it
activations      by how much of the base's states each expert reads
token_gated      experts that share every token in each layer anew
comparison       the base of policies that run the experts over the prompt first
prompt_nll       the experts that the prompt surprises least
dawin            the experts that are surest of what comes next
t3               by how much an expert disagrees with the base
t3_batch         t3, with one comparison and one mix for a tenant's requests that come together
"""
