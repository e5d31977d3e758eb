"""Who may ask, for what, and how much.

key_ring   whose key a request carries, where that may go, and how long prompts and answers may be
admission  who is let into the engine: by the budget of its key, and by room
quarantine who is not, since the engine died of it
"""
