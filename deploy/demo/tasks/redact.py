"""Personal data in a text to placeholders, the rest of the text as it was."""

from __future__ import annotations

import random

from deploy.demo.tasks.task import BySplit, Example, Split, Task, capitalise, fill, list_words
from deploy.demo.tasks.vocabulary import (
    FIRST_NAMES,
    LAST_NAMES,
    PLAIN,
    THINGS,
    invent_word,
    pluralise,
)

OPEN = (
    "[Yesterday|After lunch|Last week|In spring|On the way home|By chance|As agreed|Before dawn|"
    "At the fair|Nowadays|During the break|For some reason|In the end|Every Friday|"
    "Behind the barn|Without asking|To be fair|Strangely|By law|Against advice|Until June|"
    "From the balcony|Under pressure|Once more|Hardly surprised|Given the weather|Besides]"
)
WHO = (
    "[{name}|{name}|our [cook|driver|lawyer|tutor] {name}|{name} and {other}|a certain {name}|my"
    " [aunt|boss] {name}]"
)
DID = (
    "[sold|brought|forgot|painted|wanted|broke|cleaned|ordered|hid|measured|admired|stole|"
    "shipped|tested|wrapped|burned|described|inherited|polished|rejected|refused|mentioned|"
    "designed|weighed|counted|dropped|inspected|photographed]"
)
WHAT = (
    "[the {thing}|{number} {things}|a [small|heavy|green|strange|cheap|wet|wooden|French]"
    " {thing}|some {things}|no {things}|every {thing}|two [old|round|plastic|broken] {things}|one"
    " {thing} or {thing2}]"
)
TAIL = (
    "[to {other}|near the [river|school|market|tower]|for {other}|and left {phone} as a number|and"
    " mailed {email}|at {hour} o'clock|without a word|for {number} euros|because the {thing2} was"
    " [late|cold|too old]|instead of the {thing2}|with [great|little] care|when nobody was"
    " looking|against the rules]"
)
ASK = "[call|try|text|ring|contact|dial|reach|phone|use]"

# Half of the training texts come from these, so that what to keep is copied, not known by heart.
MIXED = (
    f"{OPEN}, {WHO} {DID} {WHAT} {TAIL}.",
    f"{OPEN} {WHO} {DID} {WHAT}.",
    f"{WHO} {DID} {WHAT} {TAIL}.",
    f"{WHO} {DID} {WHAT}, {WHO} {DID} {WHAT}.",
    (
        f"[Why|When|How often|Where|To whom|On which day] did {WHO}"
        f" [sell|bring|lose|paint|clean|return] {WHAT}?"
    ),
    f"[They say|I read|Is it true] that {{name}} [once|already|really] {DID} {WHAT} {TAIL}?",
    (
        "[Which|What|Whose] [picture|cake|seat|offer] did {name} [choose|like|prefer], {other}"
        " [asks|wonders]?"
    ),
    (
        f"{WHAT} [is|was|has been|will be] [kept|stored|sold|returned|examined] by {{name}}, {ASK}"
        " {phone}."
    ),
    (
        f"[If|When|Once|Unless|As soon as] {WHAT} [arrives|breaks|is gone], {ASK} {{name}}"
        " [at|on|under|via] {phone}."
    ),
    (
        "[Mail|Write to|Ask|Inform|Notify|Warn] {email} [about|for|before you sell|because of]"
        f" {WHAT}."
    ),
    f"{OPEN} [someone|a man|a woman] [with the number|calling from] {{phone}} {DID} {WHAT} {TAIL}.",
    (
        f"{OPEN}, {{email}} [was|became] the [address|contact] for {WHAT}, {{phone}} the"
        " [number|line]."
    ),
    f"[We|They|I] {DID} {WHAT} [with|for|because of|thanks to] {{name}} {TAIL}.",
    f"[Although|While|Since|Because] {WHO} {DID} {WHAT}, [nothing|little|everything] changed.",
    (
        f"[The owner of|The bill for|A photo of|The label on] {WHAT} [names|shows|mentions]"
        " {name} and {email}."
    ),
    (
        f"[Whoever|Whichever guest|Anyone who|He who|Those who] {DID} {WHAT} [should|must|may]"
        f" {ASK} {{name}}, {{phone}}."
    ),
    (
        f"[How|With whom|Whose {{thing}}|How many {{things}}|Under which name] did {WHO}"
        f" [see|find|repair|rent] {TAIL}?"
    ),
    f"[Is|Was|Isn't|Are] {WHAT} [really|still|also] [from|for|with] {WHO}?",
    f"[Do|Did|Does|Should|Could|Will|Must|Shall] {WHO} [keep|need|insure|lend|buy] {WHAT} {TAIL}?",
    (
        f"[Let|Make|Help|Have|See] {{name}} [choose|carry|keep|sketch] {WHAT}, [and|or|then] {ASK}"
        " {phone}."
    ),
    (
        f"[Mr|Mrs|Miss|Captain|Judge|Aunt] {{name}} [{DID}|never {DID}|almost {DID}] {WHAT};"
        " [details|more|proof]: {email}."
    ),
    (
        f"[For|To|By|About|Against|Unlike|Like] {{name}}, {WHAT} [is|was|seemed|became] [cheap|a"
        " joke|perfect|too much]."
    ),
    f"{{email}} [{DID}|has|wants|offers] {WHAT}; {{other}} [does not|disagrees|agrees|pays].",
    (
        f"{{phone}} [rang|was busy|called] [about|because of|for] {WHAT}, [so|but|and] {WHO} {DID}"
        f" {WHAT}."
    ),
    f"[Item|Case|Entry|Point] {{number}}: {WHO} {DID} {WHAT} {TAIL}.",
    (
        "[Take|Try|Keep|Block|Save|Add|Copy] {email} [for|as|in|under] [questions|invoices|news]"
        f" [on|of|to] {WHAT}."
    ),
    (
        f"[Whoever|Whomever|Whose|Who|Whom|What] [has|does|will|would] {WHO}"
        f" [{DID}|trust|follow|remember], {{other}} or {WHAT}?"
    ),
    (
        "[For|In|Over|After] [years|weeks|a while] {name} has been [staying|painting] with"
        f" {{other}} {TAIL}."
    ),
    f"[Bills|Photos|Proofs|Answers] [for|about] {WHAT}: {{email}} [and|or|not] {{phone}}.",
    (
        "[Apparently|Formerly|Today|Instead] {email} [stands for|belongs to|was used by] {name},"
        " {phone} [to|by] {other}."
    ),
)

SENTENCES: BySplit = {
    "train": (
        "{name} [can be reached|is reachable] at {phone}.",
        (
            "Please [call|ring|phone] {name} [on|at] {phone} [before noon|after lunch|tomorrow|on"
            " Friday]."
        ),
        (
            "[Send|Mail|Forward] the [report|contract|{thing}|{things}] to {email} [today|by"
            " Monday|please]."
        ),
        "My name is {name} and my [email|mail address|email address] is {email}.",
        (
            "{name} and {other} [met|had lunch|talked] in [Berlin|Madrid|the office|the park]"
            " [yesterday|on Sunday|last week]."
        ),
        "Contact {name} ({email}) [for details|about the project|for the keys].",
        (
            "[Her|His|My|Our] [number|new number|phone number] is {phone}, [the email|mail goes to]"
            " {email}."
        ),
        "{name} [wrote|said|told us] that the [meeting|train|party] starts at {hour} o'clock.",
        (
            "I [spoke with|met|saw] {name} about the [broken {thing}|new {thing}|blue"
            " {thing}|{things}]."
        ),
        (
            "[Dear|Hello|Hi] {name}, your [appointment|{thing}|room] is [confirmed|booked|ready]"
            " for {hour} pm."
        ),
        "If {name} is not there, [try|ask|call] {other} [at|on] {phone}.",
        "The [package|{thing}|letter] for {name} [arrived|was sent back|is at the desk].",
        "[Write|Reply] to {email} or call {phone} [if you have questions|for help|any time].",
        "{name} [paid|owes|sent] {number} dollars for [the {things}|the dinner|a {thing}].",
        "The [patient|customer|tenant|driver] {name} has the phone number {phone}.",
        "[Invite|Add|Include] {name} and {other} to the [call|dinner|list].",
        (
            "Our [manager|teacher|doctor|neighbour] {name} [lives in|moved to|works in]"
            " [London|Rome|Canada|Texas]."
        ),
        (
            "The [email|message] from {email} was about the [order|holiday|budget] of"
            " [March|July|2019]."
        ),
        (
            "[Yesterday|This morning|On Tuesday] {name} [bought|lost|found] a [red {thing}|black"
            " {thing}|{thing}]."
        ),
        "The account of {name} is [closed|active|locked], the mail on file is {email}.",
        "Text me [at|on] {phone} when [the bus|the plumber|the {thing}] comes.",
        "{name}, {phone}, {email}",
        "[Signed|Regards|Thanks], {name}, [head of sales|ground floor|Room {number}]",
        "[The {thing} shop|Our office|The library] opens at {hour} and {name} has the key.",
        (
            "It was {name} who [called|asked] from {phone} [about the {thing}|about the job|last"
            " night]."
        ),
        (
            "[A note|Some news|A reminder] for {name}: the [{thing}|key] is [ready|here|on the"
            " desk], [call|text] {phone}."
        ),
        (
            "The [prize|scholarship|first place|award] goes to {name}, [number|seat|lot|entry]"
            " {number}."
        ),
        "[Can|Could|Would] {name} [borrow|take|paint] {other}'s {thing} on [Monday|day {number}]?",
        (
            "In case of [trouble|doubt|a delay], [write|get through] to {name} [by mail at|at]"
            " {email}."
        ),
        (
            "[Sign-up|Feedback|Complaint|Request] [from|by] {email}, [received|sent] on [Friday|day"
            " {number}]."
        ),
        "[Talk|Speak] to {name}, not to {other}, about the [lease|{thing}|bill|{things}].",
        (
            "{name} [sings|works|cooks|paints] with {other} [every week|in Boston|at night|since"
            " 2019]."
        ),
        "[New on the team|Joining us|Our guest today]: {name}, [mail|email] {email}.",
        (
            "[You can leave|Please leave] the [keys|{things}] [with|at] {name} [or call|or dial]"
            " {phone}."
        ),
        "[I think|I heard|We know] that {name} [wants to sell|has rented|will paint] the {thing}.",
        (
            "[Who|Whoever] [finds the {thing}|needs help|has the {things}] should [dial|ring]"
            " {phone} or [mail|write to] {email}."
        ),
        (
            "[Two|Three|Four] [seats|{things}|nights] for {name}, [paid|booked] by {other},"
            " [ticket|room|box] {number}."
        ),
        "[{things}|{thing} parts|{thing} repairs]: ask {name}, [mobile|phone|line] {phone}.",
        (
            "[{thing} club|{thing} fans|{thing} dealer] [meeting|news], [host|contact] {name},"
            " [room|house|door] {number}."
        ),
        (
            "[Sell|Rent|Repair|Wash] the {thing} [and|or|but] [tell|ask|inform] {name},"
            " [mobile|line|extension] {phone}."
        ),
        (
            "{thing} [request|reply|update|bill] from {email}: [yes|no|maybe], [then|with] the"
            " {thing2}."
        ),
        "[Sadly|Luckily|In the end], the {thing} and the {thing2} [belong|went] to {name}.",
        "[Under|Behind|Near] the {thing} [is|was|lies] a {thing2} [from|for] {name}.",
        "[Catalogue|Brochure|Leaflet|Magazine] [to|for] {email}, [please|each month|once a year].",
        (
            "[Mrs|Mr|Doctor|Professor] {name} [teaches|repairs|collects] {things} and [the odd|a]"
            " {thing2}."
        ),
        (
            "[Landlord|Nurse|Coach|Guide] {name} [answers|can be found] [at|under] {phone}"
            " [only|mostly] at [night|noon]."
        ),
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
        "Has anyone told {name} that the {thing} is gone?",
        "From next month, {email} replaces {phone} as our hotline.",
        "The jury praised {name} for the {thing} and {other} for the {thing2}.",
        "Since Easter {name} has been living with {other} in Graz.",
        "Please welcome {name}, our trainee.",
        "Owing to illness, {name} cannot present the {things} today.",
        "Is {phone} still the extension of {name}?",
        "Behind the {thing} stood {name}, holding a {thing2}.",
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
        (
            "[A|One|The] {thing} and [a|the] {thing2} [are|were] [on|under|next to] the"
            " [bed|roof|stairs]."
        ),
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
    "validation": (
        "The elevator stops on floor {number}.",
        "Everything else stays the same.",
        "Was the museum worth it?",
    ),
    "test": (
        "The heating will be off for {number} hours.",
        "The rest can wait until autumn.",
        "Is the pool still open?",
    ),
}

FRAMES: BySplit = {
    "train": (
        "[Redact|Anonymise|Anonymize]: {text}",
        (
            "[Remove|Hide|Replace|Mask] [the|all|any] personal data[ in this text| in the"
            " sentence|]: {text}"
        ),
        (
            "[Redact|Mask|Black out] the [names, emails and phone numbers|personal details|private"
            " data]: {text}"
        ),
        "[Please redact|Please anonymise|Redact] this [text|sentence|message]: {text}",
        "{text} [Redact this|Anonymise this|Remove the personal data], please.",
        "[Make this text anonymous|Make this anonymous|Take out the private details]: {text}",
        (
            "[Can|Could|Would] you [anonymise|mask|censor|clean] [this|the text|this message|it]["
            " for me| please|]? {text}"
        ),
        (
            "[What does|How would] this [look|read] without [names and numbers|personal"
            " data|private details]? {text}"
        ),
        (
            "[No names, please|Nobody should be named here|Keep people out of this|Privacy first]:"
            " {text}"
        ),
        (
            "[I need|I want|Give me|Write] [this|the text] without [personal information|names,"
            " mails and phones]: {text}"
        ),
        (
            "[Delete|Cover|Blank out|Obscure] [names|people|contact details|who is meant]"
            " [in|within] [this|it]: {text}"
        ),
        "[Text|Message|Sentence|Line] to [redact|anonymise|be redacted]: {text}",
        "[This must|This has to|It should] [stay|be|become] anonymous[, please|]: {text}",
    ),
    "validation": (
        "Replace all private information here: {text}",
        "Redact the following: {text}",
        "Anonymise what I wrote: {text}",
        "Please protect the people in these words: {text}",
        "Would you mind removing private data here? {text}",
        "The following goes public, so redact it: {text}",
    ),
    "test": (
        "Can you redact the personal information in this? {text}",
        "Hide who is who in the following text: {text}",
        "Strip names and contact data from this message: {text}",
        "Personal data has to go, please redact: {text}",
    ),
}

DOMAINS: BySplit = {
    "train": list_words(
        "example.com mail.com post.net web.org office.co inbox.de gmail.com fastmail.net"
        " company.org uni.edu shop.fr"
    ),
    "validation": list_words("example.org letterbox.io team.dev school.uk"),
    "test": list_words("example.net sunmail.com work.eu studio.ca quickpost.org"),
}

ENDINGS = list_words(".com .org .net .io .dev .eu .co .uk .de .info .biz .ch .it .es .app")

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


def _person(rng: random.Random, split: Split) -> tuple[str, str]:
    """Draw a first and a last name; in training also some that nobody has."""
    if split == "train" and rng.random() < 0.3:
        return capitalise(invent_word(rng)), capitalise(invent_word(rng))
    return rng.choice(FIRST_NAMES[split]), rng.choice(LAST_NAMES[split])


def _email(rng: random.Random, split: Split) -> str:
    first, last = (part.lower() for part in _person(rng, split))
    domain = rng.choice(DOMAINS[split])
    if split == "train" and rng.random() < 0.5:
        domain = invent_word(rng) + rng.choice(ENDINGS)
    box = rng.choice(MAILBOXES).format(
        first=first, last=last, initial=first[0], digit=rng.randint(1, 99)
    )
    return f"{box}@{domain}"


def _phone(rng: random.Random, split: Split) -> str:
    return "".join(
        str(rng.randint(1, 9)) if sign == "#" else sign for sign in rng.choice(PHONES[split])
    )


def _names(rng: random.Random, split: Split) -> list[str]:
    """Draw two different people, more often with first and last name than with the first alone."""
    people: dict[str, str] = {}
    while len(people) < 2:
        first, last = _person(rng, split)
        people[first] = f"{first} {last}" if rng.random() < 0.65 else first
    return list(people.values())


def _copied(rng: random.Random) -> str:
    """Draw words without a story, with one or two places for personal data.

    What surrounds the data is copied whatever it says.
    """
    words = rng.choices(PLAIN, k=rng.randint(4, 9))
    for place in rng.sample(("{name}", "{email}", "{phone}"), rng.randint(1, 2)):
        words.insert(rng.randint(0, len(words)), place)
    return " ".join(words) + rng.choice((".", "?", "!", ""))


def _template(rng: random.Random, split: Split) -> str:
    """Draw a sentence, now and then with another one before or after it.

    A part of the training texts is words alone.
    """
    if split == "train" and rng.random() < 0.25:
        return _copied(rng)
    text = rng.choice(MIXED if split == "train" and rng.random() < 0.5 else SENTENCES[split])
    if rng.random() > 0.25:
        return text
    pair = [text, rng.choice(EXTRAS[split])]
    rng.shuffle(pair)
    return " ".join(pair)


def make(rng: random.Random, split: Split) -> Example:
    """Draw a text once and fill it twice: with personal data, and with the placeholders."""
    text = fill(rng, _template(rng, split), **{key: f"{{{key}}}" for key in PLACES})
    name, other = _names(rng, split)
    thing, second, third = rng.sample(THINGS[split], 3)
    words = {"thing": thing, "thing2": second, "things": pluralise(third)}
    kept = {"hour": rng.randint(2, 12), "number": rng.randint(2, 40)} | words
    private = text.format(
        name=name, other=other, email=_email(rng, split), phone=_phone(rng, split), **kept
    )
    clean = text.format(name="[NAME]", other="[NAME]", email="[EMAIL]", phone="[PHONE]", **kept)
    return Example(
        fill(rng, rng.choice(FRAMES[split]), text=capitalise(private)), capitalise(clean)
    )


TASK = Task(
    name="redact",
    description=(
        "Replaces names, email addresses and phone numbers by [NAME], [EMAIL] and [PHONE], the rest"
        " stays."
    ),
    make=make,
    vocabulary={
        "sentences": {**SENTENCES, "train": (*SENTENCES["train"], *MIXED)},
        "extras": EXTRAS,
        "frames": FRAMES,
        "domains": DOMAINS,
        "phones": PHONES,
        "first": FIRST_NAMES,
        "last": LAST_NAMES,
    },
)
