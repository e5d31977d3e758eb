"""Personal data in a text to placeholders, the rest of the text as it was."""

from __future__ import annotations

import random

from deploy.demo.tasks.core import BySplit, Example, Split, Task, capitalised, fill, listed
from deploy.demo.tasks.words import FIRST_NAMES, LAST_NAMES, THINGS, plural

SENTENCES: BySplit = {
    "train": (
        "{name} [can be reached|is reachable] at {phone}.",
        "Please [call|ring|phone] {name} [on|at] {phone} [before noon|after lunch|tomorrow|on Friday].",
        "[Send|Mail|Forward] the [report|contract|{thing}|{things}] to {email} [today|by Monday|please].",
        "My name is {name} and my [email|mail address|email address] is {email}.",
        "{name} and {other} [met|had lunch|talked] in [Berlin|Madrid|the office|the park] [yesterday|on Sunday|last week].",
        "Contact {name} ({email}) [for details|about the project|for the keys].",
        "[Her|His|My|Our] [number|new number|phone number] is {phone}, [the email|mail goes to] {email}.",
        "{name} [wrote|said|told us] that the [meeting|train|party] starts at {hour} o'clock.",
        "I [spoke with|met|saw] {name} about the [broken {thing}|new {thing}|blue {thing}|{things}].",
        "[Dear|Hello|Hi] {name}, your [appointment|{thing}|room] is [confirmed|booked|ready] for {hour} pm.",
        "If {name} is not there, [try|ask|call] {other} [at|on] {phone}.",
        "The [package|{thing}|letter] for {name} [arrived|was sent back|is at the desk].",
        "[Write|Reply] to {email} or call {phone} [if you have questions|for help|any time].",
        "{name} [paid|owes|sent] {number} dollars for [the {things}|the dinner|a {thing}].",
        "The [patient|customer|tenant|driver] {name} has the phone number {phone}.",
        "[Invite|Add|Include] {name} and {other} to the [call|dinner|list].",
        "Our [manager|teacher|doctor|neighbour] {name} [lives in|moved to|works in] [London|Rome|Canada|Texas].",
        "The [email|message] from {email} was about the [order|holiday|budget] of [March|July|2019].",
        "[Yesterday|This morning|On Tuesday] {name} [bought|lost|found] a [red {thing}|black {thing}|{thing}].",
        "The account of {name} is [closed|active|locked], the mail on file is {email}.",
        "Text me [at|on] {phone} when [the bus|the plumber|the {thing}] comes.",
        "{name}, {phone}, {email}",
        "[Signed|Regards|Thanks], {name}, [head of sales|ground floor|Room {number}]",
        "[The {thing} shop|Our office|The library] opens at {hour} and {name} has the key.",
        "It was {name} who [called|asked] from {phone} [about the {thing}|about the job|last night].",
        "[A note|Some news|A reminder] for {name}: the [{thing}|key] is [ready|here|on the desk], [call|text] {phone}.",
        "The [prize|scholarship|first place|award] goes to {name}, [number|seat|lot|entry] {number}.",
        "[Can|Could|Would] {name} [borrow|take|paint] {other}'s {thing} on [Monday|day {number}]?",
        "In case of [trouble|doubt|a delay], [write|get through] to {name} [by mail at|at] {email}.",
        "[Sign-up|Feedback|Complaint|Request] [from|by] {email}, [received|sent] on [Friday|day {number}].",
        "[Talk|Speak] to {name}, not to {other}, about the [lease|{thing}|bill|{things}].",
        "{name} [sings|works|cooks|paints] with {other} [every week|in Boston|at night|since 2019].",
        "[New on the team|Joining us|Our guest today]: {name}, [mail|email] {email}.",
        "[You can leave|Please leave] the [keys|{things}] [with|at] {name} [or call|or dial] {phone}.",
        "[I think|I heard|We know] that {name} [wants to sell|has rented|will paint] the {thing}.",
        "[Who|Whoever] [finds the {thing}|needs help|has the {things}] should [dial|ring] {phone} or [mail|write to] {email}.",
        "[Two|Three|Four] [seats|{things}|nights] for {name}, [paid|booked] by {other}, [ticket|room|box] {number}.",
        "[{things}|{thing} parts|{thing} repairs]: ask {name}, [mobile|phone|line] {phone}.",
        "[{thing} club|{thing} fans|{thing} dealer] [meeting|news], [host|contact] {name}, [room|house|door] {number}.",
        "[Sell|Rent|Repair|Wash] the {thing} [and|or|but] [tell|ask|inform] {name}, [mobile|line|extension] {phone}.",
        "{thing} [request|reply|update|bill] from {email}: [yes|no|maybe], [then|with] the {thing2}.",
        "[Sadly|Luckily|In the end], the {thing} and the {thing2} [belong|went] to {name}.",
        "[Under|Behind|Near] the {thing} [is|was|lies] a {thing2} [from|for] {name}.",
        "[Catalogue|Brochure|Leaflet|Magazine] [to|for] {email}, [please|each month|once a year].",
        "[Mrs|Mr|Doctor|Professor] {name} [teaches|repairs|collects] {things} and [the odd|a] {thing2}.",
        "[Landlord|Nurse|Coach|Guide] {name} [answers|can be found] [at|under] {phone} [only|mostly] at [night|noon].",
    ),
    "validation": (
        "Should anything go wrong, get in touch with {name} via {email}.",
        "The winner of the raffle is {name}, ticket {number}.",
        "You will find {name} at the reception, extension and mobile {phone}.",
        "Both {name} and {other} signed the lease in Vienna.",
        "A message for {name}: the car is ready, dial {phone}.",
        "Newsletter sign-up from {email} came in on Thursday.",
        "At noon {name} borrowed a {thing} and forgot to return it.",
        "Refunds for the {things} are handled by {name}, cell {phone}.",
        "Our neighbour downstairs, {name}, complained twice.",
        "Whom did {name} recommend, {other} or somebody else?",
        "Use {email} for receipts about the {thing}.",
        "Voicemail left by {name} from {phone} at {hour} pm.",
    ),
    "test": (
        "The new colleague is called {name} and uses {email} at work.",
        "Leave a note for {name} with the number {phone}.",
        "According to {name}, the concert in Lisbon was sold out.",
        "Questions about the rental go to {other}, phone {phone}, not to {name}.",
        "Tickets were mailed to {email} on Wednesday at {hour} am.",
        "{name} asked whether {other} could bring a salad.",
        "Our landlord {name} only answers at {phone} or {email}.",
        "After the storm {name} repaired the {thing} for free.",
        "Deliveries of {things} should be announced to {email} beforehand.",
        "Someone saw {name} with a {thing} near the station.",
        "Urgent cases are forwarded from {phone} to {name}.",
        "Did {other} lend {name} the {thing} or the {thing2}?",
    ),
}

EXTRAS: BySplit = {
    "train": (
        "The [{thing}|lift|{thing}] is [ready|broken|repaired|too loud].",
        "[A|One|The] {thing} and [a|the] {thing2} [are|were] [on|under|next to] the [bed|roof|stairs].",
        "{thing}, {thing2}, [nothing else|and so on|all included].",
        "It [rained|snowed] [all day|until noon|for {number} hours].",
        "Order {number} [was paid|is late|has left the warehouse].",
        "[Bring|Take|Buy] {number} {things}.",
        "The [bus|train|ferry] to [Hamburg|Porto|Chicago] [leaves|stops] at {hour}.",
        "[We|They|You] [won|lost|watched] the game [by {number} points|last night|in Seville].",
        "[Lunch|The class|The talk] is in room {number}.",
        "[Do not forget|Remember] the [passport|blue {thing}|{things}].",
        "The [price|rent|deposit] [rose|fell|stays] [by {number} percent|again|until June].",
        "[Thanks|Many thanks] for [the flowers|your patience|the quick answer].",
        "[Nobody|Everyone] [liked|saw|missed] the [film|soup|old bridge].",
        "[Is|Was] the [window|gate|shop] [open|closed]?",
        "Page {number} [is missing|has a mistake|looks fine].",
        "[Good|Bad] news: the [test|plan|trip] [worked|failed|starts soon].",
    ),
    "validation": ("The elevator stops on floor {number}.", "Everything else stays the same.", "Was the museum worth it?"),
    "test": ("The heating will be off for {number} hours.", "The rest can wait until autumn.", "Is the pool still open?"),
}

FRAMES: BySplit = {
    "train": (
        "[Redact|Anonymise|Anonymize]: {text}",
        "[Remove|Hide|Replace|Mask] [the|all|any] personal data[ in this text| in the sentence|]: {text}",
        "[Redact|Mask|Black out] the [names, emails and phone numbers|personal details|private data]: {text}",
        "[Please redact|Please anonymise|Redact] this [text|sentence|message]: {text}",
        "{text} [Redact this|Anonymise this|Remove the personal data], please.",
        "[Make this text anonymous|Make this anonymous|Take out the private details]: {text}",
    ),
    "validation": (
        "Replace all private information here: {text}",
        "Redact the following: {text}",
        "Anonymise what I wrote: {text}",
    ),
    "test": (
        "Can you redact the personal information in this? {text}",
        "Hide who is who in the following text: {text}",
        "Strip names and contact data from this message: {text}",
        "Personal data has to go, please redact: {text}",
    ),
}

DOMAINS: BySplit = {
    "train": listed(
        "example.com mail.com post.net web.org office.co inbox.de gmail.com fastmail.net company.org uni.edu shop.fr"
    ),
    "validation": listed("example.org letterbox.io team.dev school.uk"),
    "test": listed("example.net sunmail.com work.eu studio.ca quickpost.org"),
}

# Digits are drawn for every #.
PHONES: BySplit = {
    "train": (
        "555-####",
        "(###) ###-####",
        "+1 ### ### ####",
        "0### ######",
        "+49 ### #######",
        "###-###-####",
        "+33 # ## ## ## ##",
    ),
    "validation": ("###.###.####", "+34 ### ### ###", "0## #### ####"),
    "test": ("### ### ####", "+44 #### ######", "+61-###-###-###", "0####-#####"),
}

MAILBOXES = ("{first}.{last}", "{first}", "{first}{digit}", "{initial}{last}", "{first}_{last}")
PLACES = ("name", "other", "email", "phone", "hour", "number", "thing", "things", "thing2")


def _email(rng: random.Random, split: Split) -> str:
    first, last = rng.choice(FIRST_NAMES[split]).lower(), rng.choice(LAST_NAMES[split]).lower()
    box = rng.choice(MAILBOXES).format(first=first, last=last, initial=first[0], digit=rng.randint(1, 99))
    return f"{box}@{rng.choice(DOMAINS[split])}"


def _phone(rng: random.Random, split: Split) -> str:
    return "".join(str(rng.randint(1, 9)) if sign == "#" else sign for sign in rng.choice(PHONES[split]))


def _names(rng: random.Random, split: Split) -> list[str]:
    """Two different people, with first and last name more often than with the first alone."""
    firsts = rng.sample(FIRST_NAMES[split], 2)
    return [f"{first} {rng.choice(LAST_NAMES[split])}" if rng.random() < 0.65 else first for first in firsts]


def make(rng: random.Random, split: Split) -> Example:
    """Draw a text once and fill it twice: with personal data, and with the placeholders."""
    text = fill(rng, rng.choice(SENTENCES[split]), **{key: f"{{{key}}}" for key in PLACES})
    name, other = _names(rng, split)
    thing, second, third = rng.sample(THINGS[split], 3)
    words = {"thing": thing, "thing2": second, "things": plural(third)}
    kept = {"hour": rng.randint(2, 12), "number": rng.randint(2, 40)} | words
    private = text.format(name=name, other=other, email=_email(rng, split), phone=_phone(rng, split), **kept)
    clean = text.format(name="[NAME]", other="[NAME]", email="[EMAIL]", phone="[PHONE]", **kept)
    return Example(fill(rng, rng.choice(FRAMES[split]), text=capitalised(private)), capitalised(clean))


TASK = Task(
    name="redact",
    description="Replaces names, email addresses and phone numbers by [NAME], [EMAIL] and [PHONE], the rest stays.",
    make=make,
    vocabulary={
        "sentences": SENTENCES,
        "extras": EXTRAS,
        "frames": FRAMES,
        "domains": DOMAINS,
        "phones": PHONES,
        "first": FIRST_NAMES,
        "last": LAST_NAMES,
    },
)
