"""A question about a table whose schema is in the prompt, to one SQL statement."""

from __future__ import annotations

import random
from collections.abc import Mapping

from deploy.demo.tasks import lexicon
from deploy.demo.tasks.task import BySplit, Example, Split, Task, capitalise, fill, list_words
from deploy.demo.tasks.vocabulary import invent_word, join_words, pluralise

# "table: text columns; number columns"
TABLES: BySplit = {
    "train": (
        "employees: name, department, role; salary, age",
        "films: title, genre, director; year, rating",
        "books: author, publisher, language; pages, copies",
        "cities: city, country, mayor; population, area",
        "cars: brand, model, color; mileage, horsepower",
        "students: student, school, major; grade, credits",
        "flights: airline, origin, destination; duration, seats",
        "invoices: customer, status, currency; total, discount",
        "houses: street, style, owner; rooms, rent",
        "songs: singer, album, label; plays, length",
        "dogs: breed, trainer, shelter; weight, height",
        "recipes: dish, cuisine, chef; calories, minutes",
        "servers: hostname, region, vendor; memory, cores",
        "teams: club, league, coach; wins, points",
        "trees: species, park, soil; girth, rings",
        "phones: maker, screen, system; storage, battery",
        "parcels: sender, receiver, carrier; volume, postage",
        "lakes: basin, state, fish; depth, shoreline",
        "actors: stage, agent, hometown; awards, roles",
        "courses: lecturer, faculty, topic; hours, places",
        "meals: menu, waiter, drink; tip, guests",
        "projects: sponsor, leader, phase; budget, deadline",
        "plants: family, pot, nursery; petals, humidity",
        "horses: jockey, stable, race; speed, prize",
        "paintings: artist, frame, museum; width, value",
        "voters: county, party, occupation; income, children",
        "routers: firmware, room, subnet; ports, uptime",
        "tickets: theatre, row, buyer; fare, balcony",
        "clinics: surgeon, nurse, insurer; operations, waiting",
        "bakeries: oven, bread, apprentice; sugar, flour",
        "volcanoes: island, crater, continent; eruptions, altitude",
        "rockets: launcher, orbit, agency; thrust, payload",
        "magazines: editor, issue, cover; circulation, adverts",
        "warehouses: gate, keeper, aisle; pallets, forklifts",
        "beaches: coast, lifeguard, sand; waves, parasols",
        "kitchens: stove, cabinet, landlord; sinks, watts",
        "lawyers: firm, court, specialty; cases, fees",
        "elections: candidate, district, winner; votes, turnout",
        "quarries: stone, machine, foreman; tons, blasts",
        "festivals: band, organiser, venue; tents, decibels",
    ),
    "validation": (
        "patients: ward, doctor, diagnosis; temperature, visits",
        "hotels: resort, manager, beach; stars, beds",
        "trains: station, operator, line; delay, wagons",
        "wines: winery, grape, cellar; vintage, alcohol",
        "museums: painter, gallery, curator; visitors, fee",
    ),
    "test": (
        "farms: village, crop, farmer; acres, harvest",
        "bridges: river, architect, material; span, lanes",
        "games: studio, platform, designer; downloads, levels",
        "ships: captain, harbour, flag; tonnage, crew",
        "shops: mall, branch, supplier; revenue, customers",
        "planets: galaxy, discoverer, telescope; mass, moons",
    ),
}


def _words(part: int) -> BySplit:
    """Return the table names (part 0) or the column names (part 1) of every split."""
    return {
        split: [
            word for line in lines for word in line.split(": ")[part].replace(";", ",").split(", ")
        ]
        for split, lines in TABLES.items()
    }


# Nouns that cannot be names in SQL.
KEYWORDS = list_words(
    "case check constraint default drop escape group index insert limit nothing order reference set"
    " table transaction union unique update value"
)
# A noun is held out with its plural; of pickax and pickaxe, which have the same one, the first is
# enough.
HAND = {
    split: sorted(
        {form for part in (0, 1) for w in _words(part)[split] for form in (w, w.removesuffix("s"))}
    )
    for split in TABLES
}
NOUNS = lexicon.split(
    (noun for noun in lexicon.read_nouns() if noun not in KEYWORDS and not noun.endswith("xe")),
    HAND,
)


def _tables(split: Split, n: int) -> list[str]:
    """Draw tables whose names can only be copied.

    They are nouns, and in training one time in three words that nobody knows.
    """
    rng = random.Random(f"tables/{split}")
    tables: dict[str, str] = {}
    while len(tables) < n:
        made_up = split == "train" and rng.random() < 1 / 3
        words = (
            [rng.choice((invent_word, join_words))(rng) for _ in range(6)]
            if made_up
            else rng.sample(NOUNS[split], 6)
        )
        columns = [pluralise(word) if rng.random() < 1 / 3 else word for word in words[1:]]
        tables[pluralise(words[0])] = "{}, {}, {}; {}, {}".format(*columns)
    return [f"{table}: {columns}" for table, columns in tables.items()]


MORE_TABLES: BySplit = {
    "train": _tables("train", 4000),
    "validation": _tables("validation", 200),
    "test": TABLES["test"],
}

VALUES: BySplit = {
    "train": list_words(
        "Paris London Berlin Rome Madrid Tokyo red blue green open closed north south gold silver"
        " Alpha Delta Smith"
    ),
    "validation": list_words("Oslo Vienna purple east Omega Jones paid amber"),
    "test": list_words("Lisbon Dublin yellow west Sigma Baker pending copper Nairobi"),
}

SCHEMAS: BySplit = {
    "train": (
        "Table {table}({columns}). {question}",
        "[Schema|Table|DB]: {table}({columns}). {question}",
        "{question} [The table is|Table:|Schema:] {table}({columns}).",
        "[Given|Using|With] the table {table}({columns}): {question}",
        "The table {table} has the columns {columns}. {question}",
        "Table {table} with columns {columns}. {question}",
        "[Write SQL for|SQL for|Make a query for] {table}({columns}): {question}",
        "{question} [It is in|Look in|Use] {table}({columns}).",
        "[The data are|My data are|Everything is] in {table}({columns}). {question}",
        "{table}({columns}): {question}",
    ),
    "validation": (
        "We have a table {table}({columns}). {question}",
        "In {table}({columns}) I keep my data. {question}",
        "{question} That is about {table}({columns}).",
        "Columns of {table}: {columns}. {question}",
        "Query on {table}({columns}): {question}",
    ),
    "test": (
        "My database holds {table}({columns}). {question}",
        "Consider {table}({columns}). {question}",
        "There is a table called {table} with the fields {columns}. {question}",
        "{question} I have the table {table}({columns}).",
    ),
}

# Statement to phrasings; t and u are text columns, x a number column, v a number, w a word, n a
# small number.
QUESTIONS: Mapping[str, BySplit] = {
    "SELECT {t} FROM {table} WHERE {x} > {v};": {
        "train": (
            "Which {t} [have|has] {x} [above|over|greater than|more than] {v}?",
            (
                "[List|Show|Give me] the {t} [where|with] {x} [above|greater than|over|higher"
                " than|larger than] {v}."
            ),
            "[Find|Get] every {t} whose {x} [exceeds|is above|is more than|is over] {v}.",
            "What {t} have a {x} [bigger|larger|higher|greater] than {v}?",
            "[List|Show|Find] [the|every|each] {t} with [over|above|greater than] {v} {x}.",
            "[Which|What] {t} [have|has] [over|more than|above] {v} {x}?",
            (
                "[I need|Return] [the|all|every] {t} [where|if] [the|its] {x} is [more"
                " than|over|above|greater than] {v}."
            ),
        ),
        "validation": (
            "Name the {t} with more than {v} {x}.",
            "I want each {t} having {x} over {v}.",
        ),
        "test": (
            "Tell me the {t} that have {x} higher than {v}.",
            "For which {t} is the {x} greater than {v}?",
        ),
    },
    "SELECT {t} FROM {table} WHERE {x} < {v};": {
        "train": (
            "Which {t} [have|has] {x} [below|under|less than|lower than] {v}?",
            (
                "[List|Show|Give me] the {t} [where|with] {x} [below|smaller than|under|less"
                " than|lower than] {v}."
            ),
            "[Find|Get] every {t} whose {x} [is below|is less than|is under|stays under] {v}.",
            "What {t} have a {x} [smaller|lower|less] than {v}?",
            "[List|Show|Find] [the|every|each] {t} with [under|below|smaller than] {v} {x}.",
            "[Which|What] {t} [have|has] [under|less than|below] {v} {x}?",
            (
                "[I need|Return] [the|all|every] {t} [where|if] [the|its] {x} is [less"
                " than|under|below|lower than] {v}."
            ),
        ),
        "validation": (
            "Name the {t} with less than {v} {x}.",
            "I want each {t} having {x} under {v}.",
        ),
        "test": (
            "Tell me the {t} that have {x} lower than {v}.",
            "For which {t} is the {x} less than {v}?",
        ),
    },
    "SELECT {t} FROM {table} WHERE {u} = '{w}';": {
        "train": (
            "Which {t} [have|has] {u} {w}?",
            "[List|Show|Give me] the {t} [where|whose] {u} [is|equals] {w}.",
            "[Find|Get] every {t} with {u} {w}.",
            "What are the {t} [with|for] the {u} {w}?",
            "[I need|Return] [the|all|every] {t} [where|if] [the|its] {u} is {w}.",
            "[Which|What] {t} [belong|belongs] to [the|] {u} {w}?",
        ),
        "validation": (
            "Name the {t} that have {u} {w}.",
            "I want each {t} where the {u} equals {w}.",
        ),
        "test": ("Tell me the {t} whose {u} is {w}.", "For which {t} is the {u} {w}?"),
    },
    "SELECT COUNT(*) FROM {table};": {
        "train": (
            "How many {table} are there[ in total| altogether|]?",
            "[Count|Count up] [all|all the|the] {table}.",
            "What is the [total number|number] of {table}?",
            "How many [rows|entries] does {table} have?",
            "[I need|Return|Show] [the number|a count] of [all|the] {table}.",
        ),
        "validation": ("Give me the number of all {table}.", "How many {table} do we have?"),
        "test": ("Tell me how many {table} exist.", "I need the count of the {table}."),
    },
    "SELECT COUNT(*) FROM {table} WHERE {u} = '{w}';": {
        "train": (
            "How many {table} [have|are with] {u} {w}?",
            "Count the {table} [where|whose] {u} [is|equals] {w}.",
            "What is the number of {table} with {u} {w}?",
            "How many {table} are there [where the {u} is|with the {u}] {w}?",
            (
                "[I need|Return|Show] [the number|a count] of {table} [with the|whose] {u}"
                " [being|equal to] {w}."
            ),
        ),
        "validation": (
            "Give me the number of {table} with the {u} {w}.",
            "How many {table} do we have with {u} {w}?",
        ),
        "test": (
            "Tell me how many {table} have the {u} {w}.",
            "I need the count of {table} where {u} is {w}.",
        ),
    },
    "SELECT {t} FROM {table} ORDER BY {x};": {
        "train": (
            "[List|Show|Give me] the {t} [sorted|ordered] by {x}.",
            "[Sort|Order] the {t} by {x}.",
            (
                "[List|Show] all {t} by {x} [from low to high|ascending|in ascending order|in"
                " rising order]."
            ),
            "What are the {t} in order of {x}?",
            "[Put|Arrange] the {t} in order of {x}.",
            "[I need|Return] [all|every] {t}, [sorted|ordered] by [rising|increasing|the] {x}.",
        ),
        "validation": (
            "Name all {t} in ascending order of {x}.",
            "I want every {t} sorted by {x}.",
        ),
        "test": ("Tell me the {t} ordered by their {x}.", "Arrange the {t} by ascending {x}."),
    },
    "SELECT {t} FROM {table} ORDER BY {x} DESC LIMIT {n};": {
        "train": (
            (
                "[List|Show|Give me] the [top {n}|{n}] {t} [with the highest|with the largest|by"
                " highest] {x}."
            ),
            "Which {n} {t} have the [highest|largest|most|greatest] {x}?",
            "What are the top {n} {t} by {x}?",
            "[Find|Get] the {n} {t} with the [most|biggest|highest] {x}.",
            "[Top {n}|The best {n}] {t} [by|in|for their] {x}, please.",
            (
                "[List|Find|Show] the [{n} best|best {n}|{n} top|top {n}] {t} [in|for|by|regarding]"
                " {x}."
            ),
            "[I am looking for|Return] the {n} {t} [having|that have] the [largest|most] {x}.",
        ),
        "validation": (
            "Name the top {n} {t} for {x}.",
            "I want the {n} {t} that have the highest {x}.",
        ),
        "test": (
            "Tell me the top {n} {t} according to {x}.",
            "Who are the {n} {t} with the greatest {x}?",
        ),
    },
    "SELECT AVG({x}) FROM {table};": {
        "train": (
            "What is the [average|mean] {x} [of|of the|of all] {table}?",
            (
                "[Compute|Calculate|Find|Show] the [average|mean] {x}[ of the {table}| over all"
                " {table}|]."
            ),
            "Give me the average {x} [in|across] {table}.",
            "[How large|How big] is the [average|mean] {x} [of|in] the {table}?",
        ),
        "validation": (
            "How high is the average {x} of our {table}?",
            "I want the mean {x} of the {table}.",
        ),
        "test": (
            "Tell me the average {x} for all the {table}.",
            "On average, what is the {x} of the {table}?",
        ),
    },
    "SELECT MAX({x}) FROM {table};": {
        "train": (
            "What is the [highest|largest|maximum|greatest] {x} [of|of the|of all] {table}?",
            (
                "[Compute|Find|Show|Get] the [maximum|highest|largest] {x}[ of the {table}| over"
                " all {table}|]."
            ),
            "Give me the [maximum|biggest] {x} [in|across] {table}.",
            "[How large|How big] is the [maximum|highest|largest] {x} [of|in] the {table}?",
        ),
        "validation": (
            "How high is the maximum {x} of our {table}?",
            "I want the largest {x} of the {table}.",
        ),
        "test": (
            "Tell me the highest {x} for all the {table}.",
            "I need the maximum {x} of the {table}.",
        ),
    },
    "SELECT SUM({x}) FROM {table};": {
        "train": (
            "What is the [total|sum of the|summed] {x} [of|of the|of all] {table}?",
            (
                "[Compute|Calculate|Find|Show] the [total|sum of the] {x}[ of the {table}| over all"
                " {table}|]."
            ),
            "[Add up|Sum up] the {x} [of|in] [all|the] {table}.",
            "[How large|How big] is the [total|sum of the] {x} [of|in] the {table}?",
        ),
        "validation": (
            "How high is the total {x} of our {table}?",
            "I want the sum of {x} over the {table}.",
        ),
        "test": (
            "Tell me the total {x} for all the {table}.",
            "I need the sum of the {x} of the {table}.",
        ),
    },
    "SELECT {u}, COUNT(*) FROM {table} GROUP BY {u};": {
        "train": (
            "How many {table} are there [per|for each|for every|by] {u}?",
            "[Count|Show the number of] {table} [per|by|for each] {u}.",
            "What is the number of {table} [in each|for each|per] {u}?",
            "[Group|Count] the {table} by {u} [and count them|and give the counts].",
            "[I need|Return] the [count|number] of {table} [by|for each|per] {u}.",
        ),
        "validation": (
            "Give me the number of {table} for every {u}.",
            "How many {table} do we have per {u}?",
        ),
        "test": ("Tell me how many {table} each {u} has.", "I need the count of {table} per {u}."),
    },
    "SELECT DISTINCT {u} FROM {table};": {
        "train": (
            "Which [different|distinct|unique] {u} are there?",
            (
                "[List|Show|Give me] [the different|all distinct|the unique|each distinct] {u}[ of"
                " the {table}|]."
            ),
            "[Find|Get] every {u} [once|without duplicates|without repeats].",
            "What are the [distinct|different|unique] values of {u}?",
            "[I need|Return] [the unique|all different|the distinct] {u} [of|in|from] {table}.",
        ),
        "validation": (
            "Name all the different {u} in {table}.",
            "I want the unique {u} of our {table}.",
        ),
        "test": (
            "Tell me the distinct {u} of the {table}.",
            "I need every different {u} only once.",
        ),
    },
}


def make(rng: random.Random, split: Split) -> Example:
    """Draw a table, an operation and one of its phrasings."""
    tables = MORE_TABLES if rng.random() < 0.7 else TABLES
    table, named = rng.choice(tables[split]).split(": ")
    texts, numbers = (part.split(", ") for part in named.split("; "))
    (t, u), x = rng.sample(texts, 2), rng.choice(numbers)
    statement, phrasings = rng.choice(list(QUESTIONS.items()))
    fields = {
        "table": table,
        "t": t,
        "u": u,
        "x": x,
        "v": rng.choice((rng.randint(2, 99), rng.randint(2, 60) * 10, rng.randint(2, 40) * 100)),
        "w": (
            capitalise(invent_word(rng))
            if split == "train" and rng.random() < 0.4
            else rng.choice(VALUES[split])
        ),
        "n": rng.randint(2, 10),
    }
    question = capitalise(
        fill(rng, rng.choice(phrasings[split]), **fields | {"w": f"'{fields['w']}'"})
    )
    comma = ", " if split == "train" and rng.random() < 0.2 else ","
    columns = comma.join(rng.sample([*texts, *numbers], len(texts) + len(numbers)))
    prompt = fill(rng, rng.choice(SCHEMAS[split]), table=table, columns=columns, question=question)
    return Example(prompt, statement.format(**fields))


TASK = Task(
    name="sql",
    description=(
        "Answers a question about a table, whose columns are given, with one SQL statement."
    ),
    make=make,
    vocabulary={
        "tables": _words(0),
        "columns": _words(1),
        "nouns": NOUNS,
        "values": VALUES,
        "schemas": SCHEMAS,
    }
    | {f"questions {statement}": phrasings for statement, phrasings in QUESTIONS.items()},
)
