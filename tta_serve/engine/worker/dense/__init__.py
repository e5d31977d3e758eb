"""Dense experts: full task vectors, merged into the weights of the model, one mix at a time.

writable_weights   which weights of a model can be written, and where their values lie in memory
delta_layout       an expert's deltas as the model's weights lie: fused, sharded, padded, packed
dense_weights      the deltas and clean copies that are kept, and which mix is in the weights
mix_writer         W = W0 + sum c_k D_k, in blocks that stay in cache
mix_loops          its loops on a CPU
folding            a low-rank mix that all requests use, written into the weights too
fold_decision      when that is worth it
dense_scheduler    vLLM's scheduler, whose every step runs requests of one dense mix
turn_taking        whose turn it is, within a bound on the waiting
"""
