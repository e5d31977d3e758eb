"""From a prompt to a mix: policies, conversations, probes.

dispatcher      decides a prompt's mix by its policy, within a deadline
route           how one prompt runs through the engine, by a mix decided before its pass or in it
invoked_mix     a mix of experts that act only from their invocation on
inline_turn     a turn whose mix the pass that answers it decides
decision        a decision: how it was reached, what an answer says of it, what later turns remember
policy_breaker  policies that fail again and again are left alone for a while
probe_cache     passes of the engine for policies, each made once
example_readings  what the engine reads in the example prompts, kept between starts
pinned_sample   which requests that pinned an expert are kept as examples of it
pinned_file     the file of the library that keeps them
"""
