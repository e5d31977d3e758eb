"""Who may ask, for what, and how much.

key_ring   whose key a request carries, and whether it may go where it wants to
admission  who is let into the engine: by the budget of its key, and by room
token_limits  how long prompts and answers may be
quarantine who is not, since the engine died of it
"""
