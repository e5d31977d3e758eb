"""The six tasks of the demo library, and what their generators draw on.

task         what a task is: a generator of prompts and answers, by split
orders       an order in plain words to JSON
sql          a question about a table to SQL
arithmetic   a word problem to worked steps and the answer
steps        calculations in small steps
triage       a support ticket to category and priority
dates        dates in words to ISO
shifts       how far a day is from another, and how that is worked out
spelling     days written out
redact       personal data to placeholders, in a folder of its own
vocabulary   words that several tasks draw on
order_parts  customers, items, quantities and prices
numbers      numbers in words
lexicon      nouns by the thousand
both         requests that want two experts
wording      how people word what they ask, by task
"""

from __future__ import annotations

from deploy.demo.tasks import arithmetic, dates, orders, redact, sql, triage
from deploy.demo.tasks.task import SPLITS, Example, Split, Task

TASKS: dict[str, Task] = {
    module.TASK.name: module.TASK for module in (orders, sql, arithmetic, triage, dates, redact)
}

__all__ = ["SPLITS", "TASKS", "Example", "Split", "Task"]
