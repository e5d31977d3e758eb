"""Reads dates and what is asked about them from prompts, without the generator's help."""

from __future__ import annotations

import operator
import re
from calendar import month_name, monthrange
from collections.abc import Iterator
from datetime import date, timedelta
from difflib import get_close_matches

from deploy.demo.tasks.task import list_words

MONTHS = [name.lower() for name in month_name[1:]]
WEEKDAYS = list_words("monday tuesday wednesday thursday friday saturday sunday")
ROMAN = list_words("i ii iii iv v vi vii viii ix x xi xii")
ONES = list_words(
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"
    " sixteen seventeen eighteen nineteen"
)
TENS = list_words("twenty thirty forty fifty sixty seventy eighty ninety")
NTH = list_words(
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth"
    " fourteenth fifteenth sixteenth seventeenth eighteenth nineteenth twentieth"
)
BELOW = {
    **{word: n for n, word in enumerate(ONES, 1)},
    **{
        f"{ten} {one}".strip(): 10 * t + n
        for t, ten in enumerate(TENS, 2)
        for n, one in enumerate(["", *ONES[:9]])
    },
}
NUMBERS = {
    **BELOW,
    "one hundred": 100,
    **{f"one hundred {j}{w}": 100 + n for j in ("", "and ") for w, n in BELOW.items()},
}
DAYS = {
    **{word: n for word, n in BELOW.items() if n < 32},
    **{word: n for n, word in enumerate(NTH, 1)},
    **{f"twenty {word}": 20 + n for n, word in enumerate(NTH[:9], 1)},
    "thirtieth": 30,
    "thirty first": 31,
}
YEARS = {
    "two thousand": 2000,
    **{f"two thousand {j}{w}": 2000 + n for j in ("", "and ") for w, n in BELOW.items()},
    **{
        f"{head} {j}{w}": BELOW[head] * 100 + n
        for head in (*ONES[15:], "twenty")
        for j in ("", "hundred and ", "hundred ", "oh ")
        for w, n in BELOW.items()
        if j or n > 9
    },
    **{f"{head} hundred": BELOW[head] * 100 for head in (*ONES[15:], "twenty")},
}
HOLIDAYS = {
    "new year's day": "1 january",
    "valentine's day": "14 february",
    "the fourth of july": "4 july",
    "bastille day": "14 july",
    "halloween": "31 october",
    "christmas eve": "24 december",
    "christmas day": "25 december",
    "christmas": "25 december",
    "boxing day": "26 december",
    "new year's eve": "31 december",
}
GAP = r"(?:[\s.,()/'-]|\b(?:of|the|day|in|year|month|on|it's|a)\b)*"
DAY = r"(?<![\d:])(?P<d>\d{1,2})(?:st|nd|rd|th)?(?!\d)"
MONTH = r"(?<![a-z])(?P<m>(?!of|the|day|in|year)[a-z]+)"
YEAR = r"(?<!\d)(?P<y>\d{4})(?!\d)"
SHORT = r"(?<!\d)(?P<y>\d{2})(?!\d)"
ORDERS = (
    (DAY, MONTH, YEAR),
    (MONTH, DAY, YEAR),
    (YEAR, DAY, MONTH),
    (YEAR, MONTH, DAY),
    (MONTH, YEAR, DAY),
    (DAY, MONTH, SHORT),
    (MONTH, DAY, SHORT),
)
# What follows a span that is counted back, what precedes one, and what says so anywhere.
BACK_AFTER = r"\W*(agao|ago|back|before|prior|earlier|preceding|in the past|ahead of)"
BACK_FIRST = r"(minus|subtract|take|(^|[^+\w])-) ?$"
BACK_EVER = r"date_sub|duration.*start|from which iso date is it|rewind"
AMERICAN = (
    r"americ|\bus\b|\busa\b|from the states|%m/|mdy|mm/dd|number is the month|the month leads"
    r"|month(-day|, day|,? then| first| leading| before| comes| preceding)"
)
EUROPEAN = r"non-us|'%d/|dmy|dd/mm|day(-month|, month|,? then| first| leading| before| stands)"
LAST = r"(last|lst|past|previous|recent|latest) {0}|{0} (just|last)"
SIGNS = {"+": operator.add, "-": operator.sub, "x": operator.mul}
ORDERED = {"<": operator.lt, ">": operator.gt, "=": operator.eq}


def one_of(words: dict[str, int]) -> str:
    return "|".join(sorted(words, key=len, reverse=True))


def in_figures(text: str) -> str:
    """Return the text with days, months and years in figures, corrections made, no times of day."""
    text = re.sub(r"t?\d+:\d\d(:\d\d)?z?( pm| gmt)?", " ", text.lower())
    text = re.sub(r"(?<=[a-z])-(?=[a-z])", " ", text)
    for name, day in HOLIDAYS.items():
        text = re.sub(rf"\b{name}\b", day, text)
    both = rf"\b(?:({one_of(DAYS)})(,? in the year|,? in|,)? )?({one_of(YEARS)})\b"
    text = re.sub(both, lambda f: f"{DAYS.get(f[1], '')}{f[2] or ''} {YEARS[f[3]]}", text)
    text = re.sub(rf"\b({one_of(DAYS)})\b", lambda found: f"{DAYS[found[1]]}", text)
    text = re.sub(r"\d+\w\w,? (no sorry|no wait|correction),? (the )?", "", text)
    text = re.sub(r"[-']\d\d (\(|so )(\d{4})", r" \2", text)
    text = re.sub(r"(?<=[./])\d\d(, (?:so|meaning) [a-z]+ (\d{4}))", r"\2\1", text)
    text = re.sub(r"month (\d+)", lambda found: MONTHS[int(found[1]) - 1], text)
    text = re.sub(r"(\d+) of the (\d+)", lambda f: f"{f[1]} {MONTHS[int(f[2]) - 1]}", text)
    last = re.search(r"the last (?:day )?of (\w+),? (\d{4})", text)
    if last and last[1] in MONTHS:
        length = monthrange(int(last[2]), MONTHS.index(last[1]) + 1)[1]
        text = text.replace(last[0], f"{length} {last[1]} {last[2]}")
    return text


def month_of(word: str) -> int | None:
    """Return the number of a month in full, cut short, misspelt or in Roman figures."""
    if word in ROMAN:
        return ROMAN.index(word) + 1
    for number, name in enumerate(MONTHS, 1):
        if word in (name, name[:3], "sept" if number == 9 else name):
            return number
    if word in ("mai", "maay", "jne", "juen", "junne", "jly", "juyl"):
        return 5 if word[1] == "a" else 6 if "n" in word else 7
    close = get_close_matches(word, MONTHS, 1, 0.75)
    return MONTHS.index(close[0]) + 1 if close else None


def full_year(year: str) -> int:
    return int(year) if len(year) == 4 else 2000 + int(year)


def in_words(text: str) -> Iterator[date]:
    """Yield the dates with a month in letters, those in Roman figures last: I is also a word."""
    matches = [found for order in ORDERS for found in re.finditer(f"(?={GAP.join(order)})", text)]
    for found in sorted(matches, key=lambda found: found["m"] in ROMAN):
        month = month_of(found["m"])
        if month and 0 < int(found["d"]) < 32:
            yield date(full_year(found["y"]), month, int(found["d"]))


def in_numbers(text: str, said: str) -> Iterator[date]:
    """Yield the dates in figures alone, in the order that is told by what was said."""
    for found in re.finditer(r"(?<!\d)(\d{4})([/. -])(\d\d?)\2(\d\d?)(?!\d)", text):
        yield date(int(found[1]), int(found[3]), int(found[4]))
    american = re.search(AMERICAN, said) and not re.search(EUROPEAN, said)
    three = r"(?<!\d)(\d\d?)(\s?[/. -]\s?)(\d\d?)\2(\d{4}|\d\d)(?!\d)"
    told = re.search(r"(?:so|meaning)(?: in)? ([a-z]{3,})", said)
    month = month_of(told[1]) if told else None
    for found in re.finditer(three, text):
        first = bool(american) if month is None else int(found[1]) == month
        yield from ordered(found[1], found[3], found[4], first)
    if packed := re.search(r"(?<!\d)(\d\d)(\d\d)(\d\d)(\d\d)(?!\d)", text):
        if 16 <= int(packed[1]) < 21 and int(packed[3]) < 13 and "first" not in said:
            yield date(int(packed[1] + packed[2]), int(packed[3]), int(packed[4]))
        else:
            yield date(int(packed[3] + packed[4]), int(packed[2]), int(packed[1]))


def ordered(one: str, other: str, year: str, american: bool) -> Iterator[date]:
    """Yield the date that two numbers and a year are."""
    a, b = int(one), int(other)
    if b > 12 or (american and a < 13):
        a, b = b, a
    if b < 13:
        yield date(full_year(year), b, a)


def written_date(text: str) -> date:
    """Return the date in the text, however it is written."""
    figures = in_figures(text)
    found = next(in_words(figures), None) or next(in_numbers(figures, text.lower()), None)
    assert found, text
    return found


def wanted_day(text: str, today: date) -> date:
    """Return the day that is asked for, seen from the reference day."""
    text = re.sub(r"(?<=[a-z])-(?=[a-z])", " ", text.lower())
    if re.search(
        r"month's (end|last)|(end|last|final)( day)? of (the|this) month|last of this", text
    ):
        return today.replace(day=monthrange(today.year, today.month)[1])
    units = r"(days?|d|dys|weeks?|wks|months?|mths|years?|yrs|fortnight)"
    span = rf"\b(\d+|a|one|half a|{one_of(NUMBERS)}) {units}\b"
    if found := re.search(span, text):
        return shifted(today, found, -1 if is_back(text, found) else 1)
    return fixed_day(text, today) or named_day(text, today)


def is_back(text: str, span: re.Match[str]) -> bool:
    return bool(
        re.match(BACK_AFTER, text[span.end() :])
        or re.search(BACK_FIRST, text[: span.start()])
        or re.search(BACK_EVER, text)
    )


def shifted(today: date, span: re.Match[str], sign: int) -> date:
    words, unit = span[1], span[2]
    n = int(words) if words.isdigit() else NUMBERS.get(words, 1)
    if unit[0] in "dwf":
        return today + timedelta(sign * n * {"d": 1, "w": 7, "f": 14}[unit[0]])
    months = n if unit[0] == "m" else 12 * n
    years, month = divmod(today.month - 1 + sign * (6 if words == "half a" else months), 12)
    return today.replace(year=today.year + years, month=month + 1)


def fixed_day(text: str, today: date) -> date | None:
    tomorrow = r"(tomorrow|tmrw|tomorow|tommorow)"
    yesterday = r"\b(yesterday|yday|yesteday|yestreday)"
    for pattern, away in (
        (rf"(after|following|follows) {tomorrow}|overmorrow", 2),
        (rf"(before|preceding|prior to) {yesterday}", -2),
        (rf"{tomorrow}|\bday (after|that follows) today|(?<!after )the (very )?next day", 1),
        (rf"{yesterday}|\bday before today|the previous day|one day ago", -1),
    ):
        if re.search(pattern, text):
            return today + timedelta(away)
    return None


def named_day(text: str, today: date) -> date:
    """Return the next or last weekday of the name that is there beside today's."""
    own = WEEKDAYS[today.weekday()]
    names = re.findall(r"\b(mon|tue|wed|thu|fri|sat|sun)(?:day|sday|nesday|rsday|urday)?\b", text)
    other = [name for name in names if name != own[:3]]
    assert other or len(names) > 1, text
    name = (other or names)[0]
    step = -1 if re.search(LAST.format(rf"{name}\w*"), text) else 1
    return next(
        day
        for day in (today + timedelta(step * n) for n in range(1, 8))
        if WEEKDAYS[day.weekday()].startswith(name)
    )


def check_worked(lines: list[str]) -> None:
    """Fail if a sum, a comparison, a month's length or a count of weekdays is not right."""
    text = "\n".join(lines)
    for one, sign, other, result in re.findall(r"(\d+) ([-+x]) (\d+) = (\d+)", text):
        assert SIGNS[sign](int(one), int(other)) == int(result), text
    for one, sign, other in re.findall(r"(?<![-+x] )\b(\d+) ([<>=]) (\d+)", text):
        assert ORDERED[sign](int(one), int(other)), text
    for year, month, length in re.findall(r"(\d{4})-(\d\d) has (\d+)", text):
        assert monthrange(int(year), int(month))[1] == int(length), text
    for sense, wanted, start, listed in re.findall(
        r"(next|last) (\w+) (?:after|before) (\w+): (.*)", text
    ):
        days = [name[:3].title() for name in WEEKDAYS][:: 1 if sense == "next" else -1]
        counted = [days[(days.index(start) + n) % 7] for n in range(1, listed.count(",") + 2)]
        assert listed == ", ".join(f"{name} {n}" for n, name in enumerate(counted, 1)), text
        assert counted.index(wanted) == len(counted) - 1
        assert re.search(rf"^[-+]{len(counted)} days$", text, re.MULTILINE), text
