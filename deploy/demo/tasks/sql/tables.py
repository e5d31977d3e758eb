"""Tables as people have them: a name, two to six columns, and how each of those is spoken of."""

from __future__ import annotations

import random
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from deploy.demo.tasks import lexicon
from deploy.demo.tasks.task import SPLITS, BySplit, Split, list_words
from deploy.demo.tasks.vocabulary import invent_word, join_words

Kind = Literal["text", "flag", "number", "year", "date"]

_FILE = Path(__file__).parent.parent / "wording" / "sql_tables.toml"
_DATA = tomllib.loads(_FILE.read_text(encoding="utf-8"))

# Nouns that cannot be names in SQL.
KEYWORDS = list_words(
    "case check constraint default drop escape group index insert limit nothing order reference set"
    " table transaction union unique update value"
)


# Names for which people say the whole word.
SHORT = list_words("km tel dob hrs wt qty dept cat addr kcal tempC born born_on mail")

# What could be said of any column of times.
TIMES = list_words(
    "oldest|newest|latest|earliest|most recent|youngest"
    "|after |before |on |later than |earlier than "
)


@dataclass(frozen=True)
class Column:
    """A column, and what people say for it and for what is in it."""

    name: str
    kind: Kind
    said: tuple[str, ...]
    """Words for it, in the singular or as they come."""
    values: str = ""
    """The source of its values, if it is of text and a condition can be on it."""
    most: tuple[str, ...] = ()
    """What things with the most of it are, such as "heaviest"."""
    least: tuple[str, ...] = ()
    over: tuple[str, ...] = ()
    """Conditions that do not name it, such as "heavier than {v}"."""
    under: tuple[str, ...] = ()
    equal: tuple[str, ...] = ()
    null: tuple[str, ...] = ()
    range: tuple[int, int] = (2, 400)
    part: bool = False
    """Whether its numbers may have a decimal."""
    total: bool = False
    """Whether a sum of it makes sense."""

    @property
    def ordered(self) -> bool:
        """Whether one can be the most."""
        return self.kind in ("number", "year", "date")


@dataclass(frozen=True)
class Table:
    """A table as it is in a prompt."""

    name: str
    thing: str
    """What a row is, in the singular."""
    things: str
    columns: tuple[Column, ...]

    def among(self, *kinds: Kind) -> list[Column]:
        """Return the columns of these kinds."""
        return [column for column in self.columns if column.kind in kinds]

    @cached_property
    def _heard(self) -> Mapping[str, set[str]]:
        heard: dict[str, set[str]] = {}
        for column in self.columns:
            for phrase in (*column.said, *column.most, *column.least):
                heard.setdefault(phrase, set()).add(column.name)
            for phrase in (*column.over, *column.under, *column.equal):
                heard.setdefault(_opening(phrase), set()).add(column.name)
            for phrase in (column.name, *(TIMES if column.kind in ("year", "date") else ())):
                heard.setdefault(phrase, set()).add(column.name)
        return heard

    def only(self, phrases: tuple[str, ...]) -> list[str]:
        """Return those phrases of a column that could mean no other column."""
        return [
            phrase
            for phrase in phrases
            if len(self._heard.get(phrase, self._heard.get(_opening(phrase), ()))) == 1
        ]


def read_table(line: str) -> Table:
    """Read a table given as "name: text columns; number columns"."""
    name, named = line.split(": ")
    texts, numbers = (part.split(", ") for part in named.split("; "))
    columns = [Column(text, "text", (text,), values="@word") for text in texts]
    columns += [Column(number, "number", (number,), total=True) for number in numbers]
    return Table(name, name.removesuffix("s"), name, tuple(columns))


def plural(word: str) -> str:
    """Return the plural of a noun, or of the last word of several."""
    if word.endswith(("s", "people", "fish", "sheep")) and not word.endswith("ss"):
        return word
    if re.search("[^aeiou]y$", word):
        return f"{word[:-1]}ies"
    if word.endswith(("person", "man", "child", "thesis")):
        return {"person": "people", "child": "children"}.get(word, word.replace("man", "men"))
    return word + ("es" if word.endswith(("sh", "ch", "ss", "x")) else "s")


def _opening(phrase: str) -> str:
    """Return what a phrase says before its value."""
    return phrase.split("{", maxsplit=1)[0]


def _bars(entry: Mapping[str, Any], key: str) -> tuple[str, ...]:
    return tuple(entry[key].split("|")) if key in entry else ()


def _split_name(name: str) -> list[str]:
    return re.findall(r"[a-z]+", re.sub("([A-Z])", r" \1", name).lower())


_TABLE_WORDS: BySplit = {
    split: [noun for line in _DATA["tables"][split].values() for noun in line.split("|")]
    for split in SPLITS
}
COLUMN_NAMES: BySplit = {
    split: sorted({name for entry in _DATA["columns"][split] for name in entry["names"].split()})
    for split in SPLITS
}
TABLE_NAMES: BySplit = {
    split: sorted({noun.split(":")[0] for noun in _TABLE_WORDS[split]}) for split in SPLITS
}
PLACES: BySplit = {split: list_words(_DATA["values"]["places"][split]) for split in SPLITS}
WORDS: BySplit = {split: list_words(_DATA["values"]["words"][split]) for split in SPLITS}

# A noun is held out with its plural; of pickax and pickaxe, which have the same one, the first is
# enough.
_HAND: BySplit = {
    split: sorted(
        {
            form
            for word in (
                *(noun for line in _TABLE_WORDS[split] for noun in line.split(":")),
                *(part for name in COLUMN_NAMES[split] for part in _split_name(name)),
                *WORDS[split],
            )
            for form in (word, word.removesuffix("s"))
        }
    )
    for split in SPLITS
}
_LISTED = lexicon.split(
    (noun for noun in lexicon.read_nouns() if noun not in KEYWORDS and not noun.endswith("xe")),
    _HAND,
)
NOUNS: BySplit = {**_LISTED, "test": [noun.split(":")[-1] for noun in _TABLE_WORDS["test"]]}


def draw_table(rng: random.Random, split: Split) -> Table:
    """Draw a table of a split, such as people have or, less often, of words that nobody knows."""
    sort = rng.choice("pwtlem")
    nouns = _DATA["tables"][split][sort].split("|")
    strange = split != "test" and rng.random() < 0.35
    noun = _draw_noun(rng, split) if strange else rng.choice(nouns)
    name, _, thing = noun.rpartition(":")
    name = name or (plural(thing) if rng.random() < 0.93 else thing)
    columns = _draw_columns(rng, split, sort)
    if rng.random() < 0.06:
        name = rng.choice(("tbl_{}", "my_{}", "{}_2024", "{}_list", "all_{}", "{}_new")).format(
            name
        )
    name = "items_here" if name in KEYWORDS else name
    if rng.random() < 0.04:
        columns = [_renamed(column, _camel(column.name)) for column in columns]
    return Table(name, thing, plural(thing), tuple(columns))


def _draw_noun(rng: random.Random, split: Split) -> str:
    if split == "train" and rng.random() < 0.3:
        return rng.choice((invent_word, join_words))(rng)
    noun = rng.choice(NOUNS[split])
    return f"{rng.choice(NOUNS[split])}_{plural(noun)}:{noun}" if rng.random() < 0.15 else noun


def _draw_columns(rng: random.Random, split: Split, sort: str) -> list[Column]:
    """Draw columns of which at least one is of text and one has an order."""
    fitting = [entry for entry in _DATA["columns"][split] if sort in entry["fits"]]
    texts = [entry for entry in fitting if entry["kind"] == "text"]
    others = [entry for entry in fitting if entry["kind"] != "text"]
    size = rng.choice((2, 3, 3, 4, 4, 4, 4, 5, 6))
    first = texts[0] if rng.random() < 0.35 and texts[0].get("plain") else rng.choice(texts)
    chosen = [first, rng.choice([entry for entry in others if entry["kind"] != "flag"])]
    rest = [entry for entry in fitting if entry not in chosen]
    chosen += rng.sample(rest, min(size - 2, len(rest)))
    columns = [_make_column(rng, entry) for entry in chosen]
    if split == "train":
        columns = [_strange(rng, column) if rng.random() < 0.12 else column for column in columns]
    rest_of = columns[1:]
    rng.shuffle(rest_of)
    columns = [columns[0], *rest_of]
    if size > 2 and rng.random() < 0.25:
        columns = [Column(_draw_key(rng), "text", ()), *columns]
    found: dict[str, Column] = {}
    for column in columns:
        found.setdefault(column.name.lower(), column)
    return list(found.values())


def _draw_key(rng: random.Random) -> str:
    return rng.choice(("id", "id", "id", "no", "nr", "ref", "uid", "num"))


def _strange(rng: random.Random, column: Column) -> Column:
    """Return a column of the same kind with a name that can only be copied."""
    if column.kind not in ("text", "number"):
        return column
    noun = rng.choice(NOUNS["train"]) if rng.random() < 0.7 else join_words(rng)
    if column.kind == "text":
        return Column(noun, "text", (noun,), values=rng.choice(("@word", "@full", "@brand")))
    return Column(plural(noun), "number", (plural(noun),), range=column.range, total=True)


def _make_column(rng: random.Random, entry: Mapping[str, Any]) -> Column:
    low, high = entry.get("range", (2, 400))
    name = rng.choice(entry["names"].split())
    said = _bars(entry, "said")
    near = [phrase for phrase in said if name in SHORT or not _far(phrase, name)]
    others = {word for phrase in said for word in phrase.split() if _far(word, name)}
    fitting = {
        key: tuple(p for p in _bars(entry, key) if name in SHORT or not others & set(p.split()))
        for key in ("over", "under", "equal")
    }
    return Column(
        name,
        entry["kind"],
        tuple(dict.fromkeys((*near, *_spoken(name)))),
        values=entry.get("values", ""),
        most=_bars(entry, "most"),
        least=_bars(entry, "least"),
        over=fitting["over"],
        under=fitting["under"],
        equal=fitting["equal"],
        null=_bars(entry, "null"),
        range=(low, high),
        part=entry.get("part", False),
        total=entry.get("total", False),
    )


def _far(phrase: str, name: str) -> bool:
    """Return whether a phrase has a word that does not begin as any word of a name."""
    begun = {word[:3] for word in _split_name(name)}
    return any(len(word) > 2 and word[:3] not in begun for word in phrase.split())


def _spoken(name: str) -> list[str]:
    """Return a name with blanks, if it has no unit or other shorthand."""
    words = _split_name(name)
    shorthand = {"kg", "g", "cm", "m", "l", "km", "gb", "mb", "kmh", "eur", "gbp", "chf", "c"}
    return [" ".join(words)] if len(words) > 1 and not shorthand & set(words) else []


def _renamed(column: Column, name: str) -> Column:
    return Column(**{**vars(column), "name": name})


def _camel(name: str) -> str:
    return re.sub(r"_(\w)", lambda found: found[1].upper(), name)
