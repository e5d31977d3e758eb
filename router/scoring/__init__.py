"""The arithmetic of policies, on numbers and tensors alone.

blend          from proportions to a mix on the grid
shares         softmax over scores, and which of the shares count
centroids      scores by the nearest standardised centroid, and their calibration
trained_gate   a trained router, and the files that keep it
heads          decisions by linear heads, in tensors of fixed shapes, for the engine's pass
divergence     how far two next-token distributions are apart
chat_turns     where a user's turn stands in a prompt
"""
