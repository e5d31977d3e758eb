"""Arithmetic word problems to a worked line and the answer.

The numbers are small: finding the operation is the task.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

from deploy.demo.tasks.task import BySplit, Example, Split, Task, capitalise, fill
from deploy.demo.tasks.vocabulary import FIRST_NAMES, THINGS, pluralise

# For + and -, a and b are the operands; for * a groups of b each; for / a things shared among b.
PROBLEMS: Mapping[str, BySplit] = {
    "+": {
        "train": (
            (
                "{name} has {a} {items} and [buys|gets|finds] {b} more. How many {items} [does"
                " {name} have|are there] now?"
            ),
            (
                "There are {a} {items} [on the shelf|in the room]. {name} [adds|brings] {b} more."
                " How many are there now?"
            ),
            (
                "{name} [made|sold|packed] {a} {items} on [Monday|Saturday] and {b} on"
                " [Tuesday|Sunday]. How many in total?"
            ),
            (
                "{name} owns {a} {items} and {other} owns {b}. How many {items} do they have"
                " [together|in total|altogether]?"
            ),
            (
                "A [shop|farm] had {a} {items} and [bought|received] {b} more. How many [does it"
                " have now|are there in all]?"
            ),
            "{name} collected {a} {items}. {other} gave {name} another {b}. What is the total?",
            (
                "One [bag|crate] holds {a} {items}, another holds {b}. How many {items} [are there"
                " in both|in all]?"
            ),
            (
                "{name} paid {a} dollars for a {item} and {b} dollars for lunch. How much did"
                " {name} [spend|pay] in [total|all]?"
            ),
            (
                "After {name} [got|won|picked up] {b} more {items}, how many are there if {name}"
                " [started|began] with {a}?"
            ),
            (
                "[Yesterday|Last week] {name} read {a} pages and [today|this week] {b} pages. How"
                " many pages is that in all?"
            ),
            "{name} walked {a} km and then {b} km more. How far did {name} walk?",
            "There were {a} people on the bus and {b} more got on. How many people are on the bus?",
            "[What is|Work out|Calculate] {a} + {b}[?|.]",
            "[Add|Sum] {a} and {b}.",
            (
                "{name} grew {a} {items} and {other} grew {b}. How many did [they|both] grow"
                " [together|in all]?"
            ),
            (
                "{name} already has {a} {items}; [a friend|an aunt|{other}] gives {name} {b}. How"
                " many [now|in the end]?"
            ),
            (
                "[A box|The cellar] has {a} {items} and {b} {items} [come|are put] in. What is the"
                " [new number|total] of {items}?"
            ),
        ),
        "validation": (
            "{name} keeps {a} {items} at home and {b} at work. How many {items} is that overall?",
            (
                "A drawer contains {a} {items}. Later {b} extra ones go in. How many does it"
                " contain now?"
            ),
            "{name} earned {a} points before the break and {b} points after it. What is the sum?",
            "{name} baked {a} {items} at dawn and {b} at dusk. Give the total.",
            "To the {a} {items} of {name}, {other} adds {b}. How many are there?",
        ),
        "test": (
            "{name} picked {a} {items} and {other} picked {b}. How many did the two pick in total?",
            (
                "In a store there are {a} {items}, and {b} more arrive by truck. How many {items}"
                " are in the store now?"
            ),
            "{name} had {a} {items} and was given {b} more. How many {items} does {name} have?",
            "{name} saved {a} coins in spring and {b} coins in summer. How many coins altogether?",
        ),
    },
    "-": {
        "train": (
            (
                "{name} had {a} {items} and [gave away|lost|sold] {b}. How many {items} [are"
                " left|does {name} still have]?"
            ),
            (
                "There are {a} {items} [on the shelf|in the box]. {name} [takes|removes|breaks]"
                " {b}. How many are left?"
            ),
            (
                "A [shop|farm] had {a} {items} and [sold|lost|threw away] {b} of them. How many"
                " [does it still have|remain]?"
            ),
            "{name} has {a} {items}, {other} has {b}. How many more {items} does {name} have?",
            (
                "{name} needs {a} {items} and [already has|has collected] {b}. How many [more are"
                " needed|are still missing]?"
            ),
            (
                "{name} had {a} dollars and [spent|paid] {b} dollars on a {item}. How much money is"
                " left?"
            ),
            (
                "There were {a} people on the bus and {b} got off. How many people are still on the"
                " bus?"
            ),
            "Of {a} {items}, {b} are broken. How many are not broken?",
            "{name} gave {other} {b} of [the|her|his] {a} {items}. How many does {name} have left?",
            "A book has {a} pages and {name} [has read|read] {b}. How many pages are left to read?",
            "{name} baked {a} cakes and [ate|shared] {b}. How many cakes remain?",
            "A rope is {a} m long and {name} cuts off {b} m. How long is the rest?",
            "[What is|Work out|Calculate] {a} - {b}[?|.]",
            "[Take|Subtract] {b} from {a}.",
            (
                "{name} had {a} {items}; {other} [borrowed|stole|bought] {b}. How many [has {name}"
                " now|stay with {name}]?"
            ),
            (
                "[A box|The cellar] had {a} {items} and {b} [were taken|fell] out. How many {items}"
                " are [still there|left in it]?"
            ),
            (
                "From {a} {items}, {name} [throws away|eats|returns] {b}. How many {items} are left"
                " over?"
            ),
        ),
        "validation": (
            "{name} started with {a} {items} but dropped {b}. How many remain?",
            "Out of {a} {items}, {name} handed {b} to {other}. How many did {name} keep?",
            "A crate contained {a} {items} and {b} went missing. How many are still inside?",
            "{name} bought {a} {items}, but {b} had to go back. How many stayed?",
            (
                "Of the {a} {items} in the garage, {name} lends {b} to {other}. How many are still"
                " in the garage?"
            ),
        ),
        "test": (
            "{name} owned {a} {items} and donated {b}. How many {items} are left?",
            (
                "In a store there were {a} {items}. Customers bought {b}. How many {items} are left"
                " in the store?"
            ),
            "{name} had {a} {items}, then {other} took {b} of them. How many does {name} have now?",
            "{name} has {a} coins and spends {b} of them. How many coins remain?",
        ),
    },
    "*": {
        "train": (
            (
                "{name} has {a} [boxes|bags|crates] with {b} {items} [each|in each]. How many"
                " {items} is that in [total|all]?"
            ),
            "[Each|Every] [box|bag|crate] holds {b} {items}. How many {items} are in {a} of them?",
            "A {item} costs {b} dollars. How much do {a} {items} cost?",
            "{name} [buys|bought] {a} {items} at {b} dollars each. How much does {name} pay?",
            "{name} [makes|reads|sells] {b} {items} [a|every|each] day. How many in {a} days?",
            (
                "There are {a} [rows|tables|shelves] with {b} {items} [each|on each]. How many"
                " {items} are there?"
            ),
            (
                "{a} [children|friends|workers] have {b} {items} each. How many {items} do they"
                " have together?"
            ),
            "{name} runs {b} km [a|every] day for {a} days. How many km is that?",
            (
                "A [week|pack|team] needs {b} {items}. How many {items} do {a} [weeks|packs|teams]"
                " need?"
            ),
            (
                "{name} fills {a} bags and puts {b} {items} into every bag. How many {items} does"
                " {name} use?"
            ),
            "[What is|Work out|Calculate] {a} * {b}[?|.]",
            "[Multiply|Take the product of] {a} and {b}.",
            (
                "[A house|A room|The yard] has {a} corners with {b} {items} in each. How many"
                " {items} in all?"
            ),
            (
                "{name} [gets|saves|earns] {b} dollars [each|every] week. How much [in|after] {a}"
                " weeks?"
            ),
            "[If|When] a {item} costs {b} dollars, what do {a} {items} cost?",
        ),
        "validation": (
            "{name} packs {a} baskets, each with {b} {items}. How many {items} are packed?",
            "One {item} weighs {b} kg. What do {a} {items} weigh?",
            "{a} students bring {b} {items} each. How many {items} are brought?",
            "{name} plants {a} rows of {b} {items}. How many {items} are planted?",
            "Each of {a} drawers has {b} {items}. How many {items} altogether?",
        ),
        "test": (
            "{name} orders {a} packets of {b} {items} each. How many {items} does {name} get?",
            "The price of one {item} is {b} dollars. What is the price of {a} {items}?",
            (
                "In a hall stand {a} cupboards with {b} {items} in each. How many {items} are in"
                " the hall?"
            ),
            "{name} collects {b} coins every week. How many coins after {a} weeks?",
        ),
    },
    "/": {
        "train": (
            (
                "{name} [shares|splits] {a} {items} [equally|evenly] among {b} people. How many"
                " does each [get|receive]?"
            ),
            (
                "{a} {items} are [packed|put] into {b} [boxes|bags], [the same number|equally many]"
                " in each. How many are in one?"
            ),
            "{b} {items} cost {a} dollars. How much does one {item} cost?",
            (
                "{name} has {a} {items} and puts {b} into each [bag|box]. How many [bags|boxes] are"
                " needed?"
            ),
            "{a} {items} stand in {b} equal rows. How many are in each row?",
            "{b} [friends|workers] share {a} dollars equally. How much does each get?",
            "{name} reads {a} pages in {b} days, the same number each day. How many pages a day?",
            "How many [groups|teams] of {b} can {name} make from {a} {items}?",
            "{name} cuts a rope of {a} m into {b} equal pieces. How long is each piece?",
            (
                "{a} {items} are [divided|split] [equally|evenly] between {b} [classes|tables]. How"
                " many per [class|table]?"
            ),
            "[What is|Work out|Calculate] {a} / {b}[?|.]",
            "[Divide {a} by {b}|Split {a} into {b} equal parts].",
            (
                "{name} [gives|deals] {a} {items} to {b} [cats|players], the same number to each."
                " How many does each [have|get]?"
            ),
            "[If|When] {b} {items} cost {a} dollars, what does a {item} cost?",
            "[Put|Lay|Spread] {a} {items} evenly [on|over] {b} [plates|desks]. How many on each?",
        ),
        "validation": (
            (
                "{name} hands out {a} {items} to {b} neighbours in equal parts. How many per"
                " neighbour?"
            ),
            "{a} {items} fill {b} drawers evenly. How many are in each drawer?",
            "{b} equal tickets cost {a} dollars. What is the price of one?",
            "{name} sorts {a} {items} into {b} equal piles. How many make a pile?",
            "{b} cousins inherit {a} {items} in equal shares. How many does one cousin own?",
        ),
        "test": (
            "{name} distributes {a} {items} equally to {b} guests. How many does every guest get?",
            "{a} {items} are placed evenly in {b} cupboards. How many are in each cupboard?",
            "For {b} {items} {name} pays {a} dollars. What is the price of one {item}?",
            "{name} divides {a} coins equally among {b} cousins. How many coins does each get?",
        ),
    },
}


def _operands(rng: random.Random, sign: str) -> tuple[int, int, int]:
    """Draw two operands and their result.

    Sums are up to 39, with one operand below ten; products are of the small multiplication table.
    """
    if sign in "+-":
        a, b = rng.randint(3, 30), rng.randint(2, 9)
        return (a, b, a + b) if sign == "+" else (a + b, b, a)
    a, b = rng.randint(2, 6), rng.randint(2, 6)
    return (a, b, a * b) if sign == "*" else (a * b, b, a)


def make(rng: random.Random, split: Split) -> Example:
    """Draw an operation, one of its stories and the numbers.

    Sums and products are written in the order of the text.
    """
    sign = rng.choice(list(PROBLEMS))
    template = rng.choice(PROBLEMS[sign][split])
    a, b, result = _operands(rng, sign)
    name, other = rng.sample(FIRST_NAMES[split], 2)
    item = rng.choice(THINGS[split])
    fields = {"name": name, "other": other, "item": item, "items": pluralise(item), "a": a, "b": b}
    prompt = capitalise(fill(rng, template, **fields))
    if sign in "+*" and template.index("{b}") < template.index("{a}"):
        a, b = b, a
    return Example(prompt, f"{a} {sign} {b} = {result}\nAnswer: {result}")


TASK = Task(
    name="math",
    description="Solves an arithmetic word problem: a worked line, then the answer.",
    make=make,
    vocabulary={"first": FIRST_NAMES, "things": THINGS}
    | {f"problems {sign}": by for sign, by in PROBLEMS.items()},
)
