"""What is observed of a probe while it passes through the model, a file for each kind of probe.

observer      what all observers do: keep something of each probe until it is asked for
comparison    the final states, of which next-token distributions are compared
activations   the states that experts read, projected on the directions in which they read
"""
