"""Training and measuring on a base model in this process, without a server.

base_model          the base in plain transformers, and what experts change in it
answered_prompts    prompts with answers, an expert's own or those that are wanted
calibration         what some merges need: grams and Fisher information
mixed_model         the base with experts mixed in, whose coefficients may be learned
features            what routing reads of a text
features_probe      the same as the probe that policies ask
labelled_prompts    the prompts that routing is learned from and judged by
optimise            gradient descent on answers
learn_entry         coefficients for each layer: `tta router learn`
learn_shares        shares for each layer: `tta router learn --loss references`
cocktail            weights of losses: `tta router cocktail`
train_gate          the gate: `tta router train`
gate_figures        how well a gate does on prompts that it was not trained on
train_layer_gates   gates for each weight of each expert: `tta router gates`
surrogate           quadratic models of what merges are worth, and their best merges
pareto_front        a front of merges: `tta router pareto`
recombine           a few entries of recombined components: `tta router recombine`
stored_entries      entries that are made together, and the file beside them
layer_loss          what an expert loses that acts only from some layer up
choose_activation   from which token on experts should act: `tta router choose-activation`
choose_layer        where routing inside the pass should begin: `tta router choose-layer`
compare_features    which features tell prompts apart best: `tta router features`
"""
