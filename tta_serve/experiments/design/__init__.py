"""What an experiment is, and who gets which arm.

definition   an operator's definition, checked
assignment   the hash that gives a unit its arm
bandit       weights of arms that follow their outcomes (Thompson sampling)
planner      how many units it takes, and what can be found with so many
stored       a definition and its history as text in the store
"""
