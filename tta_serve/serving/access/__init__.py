"""Who may ask, for what, and how much.

key_ring  whose key a request carries, and whether it may go where it wants to
budgets   requests, tokens and concurrency by key
"""
