"""Routing: from a prompt to the mix of experts that should answer it.

    registry   all policies by name, and how one is made of a config
    policies   the policies, one file each
    policy     the interface of a policy, its options and its context
    probing    what a policy may ask of the engine
    decision   the prompt that goes in, the decision that comes out
    scoring    the arithmetic that policies share
    artifacts  whether what `tta router` made can still be used
    errors     what a wrong config raises

It builds on `adapters`, and knows no server and no engine.
"""
