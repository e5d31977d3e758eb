"""Support tickets to a category and a priority."""

from __future__ import annotations

import random
from collections.abc import Mapping

from deploy.demo.tasks.task import BySplit, Example, Split, Task, capitalise, fill

ISSUES: Mapping[str, BySplit] = {
    "billing": {
        "train": (
            "I was charged twice [this month|last week|for one order]",
            "my invoice [shows|has] the wrong [amount|total|address]",
            "please refund my [last|latest|second] payment",
            "the [discount|coupon] was not taken off my bill",
            "you took [money|a payment] from my card [after I cancelled|without asking]",
            "I [need|want] a receipt for my [purchase|subscription]",
            "my credit card was [billed|debited] for a plan I do not have",
            "the price on the invoice is higher than [agreed|on the website]",
            "I have not received my refund [yet|so far]",
            "why did my monthly fee go up",
            "the tax on my invoice is calculated wrongly",
            "I want my money back [for the unused months|for the annual plan]",
            "my payment [was declined|did not go through] although the card is fine",
            "please change the payment method for my subscription",
            "I paid the bill but it still shows as [open|unpaid]",
            "there is an unknown fee on my statement",
            "I was [overcharged|charged too much] [for shipping|this time|again]",
            "there is [a double|a wrong|an extra] charge on my [card|account|bill]",
            "the [amount|sum|total] [due|to pay] is [wrong|not right|too high]",
            "how can I get [a copy of my bill|my money back|an invoice for March]",
            "[the refund|my refund|the repayment] [is missing|was too small|takes too long]",
            "I [paid|was billed] [twice|two times] for the same [thing|month|order]",
            "your company [charged|debited] [me|my card] [by mistake|without my consent]",
            "I do not [understand|recognise] [this payment|this charge|a position on my bill]",
        ),
        "validation": (
            "the amount on my bill does not match my plan",
            "I was billed for the yearly subscription by mistake",
            "a refund you promised never reached my bank",
            "there are two identical charges on my card statement",
            "I need a corrected invoice with our tax number",
        ),
        "test": (
            "my card shows a charge I do not recognise from you",
            "the invoice for May lists a payment I never made",
            "I would like to be reimbursed for the double payment",
            "my subscription was charged even though I ended it",
            "the total on my latest bill is too high",
            "can I have a copy of my invoice",
        ),
    },
    "login": {
        "train": (
            "I cannot [sign in|log in|get in] to my account",
            "the password reset mail never [arrives|comes]",
            "the two factor code is [rejected|not accepted|invalid]",
            "my account is locked [after three attempts|since this morning]",
            "I forgot my password [and the security question|again]",
            "the login page says my password is wrong",
            "I am [logged|signed] out [every few minutes|all the time]",
            "my username is not [recognised|known] any more",
            "the sign-in link in the mail has expired",
            "I lost the phone with my authenticator app and cannot log in",
            "it says my account does not exist when I log in",
            "I cannot reset my password",
            "single sign-on sends me back to the login page",
            "I no longer have access to the email I sign in with",
            "the login code sent by text message never comes",
            "my new password does not work when I sign in",
            "I am locked out of [my account|the portal|the system]",
            "my [password|code|PIN] is [refused|not accepted|rejected]",
            "[signing|logging] in [fails|does not work|is impossible]",
            "I can't [log on|log in|sign on][ with my password| with my work account|]",
            "[the mail|the link] to [reset|change] my password [never came|is invalid]",
            "my [user account|profile|access] [was blocked|has been locked|is disabled]",
            "the [security|verification|sign-in] code [has expired|is wrong|did not arrive]",
            "I [forgot|lost] my [login|password|user name]",
        ),
        "validation": (
            "your site refuses my password since yesterday",
            "I am locked out of my profile",
            "the verification code for signing in does not work",
            "logging in with my work account fails",
            "I need to reset my password but get no mail",
        ),
        "test": (
            "signing in with my usual password is no longer possible",
            "I never get the code that I need to log in",
            "my login was blocked after too many tries",
            "the forgotten password form does not send me anything",
            "I can't access my account because the password is not accepted",
            "authentication keeps failing when I try to log on",
        ),
    },
    "shipping": {
        "train": (
            "my [parcel|package|order] has not arrived",
            "the courier left [it|the box] at the wrong house",
            "the tracking number does not work",
            "my delivery is [three days|a week] late",
            "the [package|box] arrived [damaged|open|wet]",
            "I received the wrong [item|product|size]",
            "one item is missing from my [delivery|parcel]",
            "please change the delivery address of my order",
            "tracking says delivered but [nothing came|I got nothing]",
            "the driver never rang the bell and took the parcel back",
            "where is my [package|parcel|shipment]",
            "my shipment has been stuck at customs for days",
            "can you ship my order to another address",
            "the parcel was returned to the sender",
            "the courier [lost|broke] my order",
            "I would like a later delivery date for my parcel",
            "[my package|my parcel|the shipment] is [lost|still on its way|overdue]",
            "I am [still waiting|waiting] for my [delivery|parcel|goods]",
            (
                "the [vase|lamp|glass] [was broken|came broken|was in pieces] when [it|the parcel]"
                " arrived"
            ),
            (
                "the [carrier|driver|postman] [gave|delivered] my [box|parcel] to [someone else|a"
                " stranger]"
            ),
            "[the tracking|the tracking page] [has not changed|shows nothing|is not updated]",
            "something was [missing|not] in the [box|parcel]",
            "my order [went|was sent] to [the wrong|an old] address",
            "the delivery [should have come|was promised for] [last week|yesterday]",
        ),
        "validation": (
            "the carrier delivered my box to a neighbour I do not know",
            "my package is still in transit after ten days",
            "half of the things were not in the parcel",
            "the shipment tracking has not moved since Tuesday",
            "the vase arrived broken in its box",
        ),
        "test": (
            "the courier says the parcel was handed over, but I have nothing",
            "my shipment should have come on Monday and is not here",
            "the delivery went to my old address",
            "the carton was crushed when it reached me",
            "I still wait for the package I ordered",
            "the tracking page cannot find my parcel",
        ),
    },
    "bug": {
        "train": (
            "the app crashes when I [open it|start it|tap save]",
            "the page shows error [500|404|503]",
            "the export button does nothing",
            "the [screen|page] stays [white|blank|empty] after loading",
            "the search [returns no results|finds nothing] although the data is there",
            "the program freezes when I [upload a photo|print|scroll]",
            "the chart shows the wrong [numbers|dates]",
            "saving a document [fails|throws an error]",
            "the menu overlaps the text on my phone",
            "notifications are shown twice in the app",
            "the latest update broke the calendar view",
            "the app is very slow and hangs since the update",
            "uploaded files disappear from the list",
            "the filter on the dashboard does not work",
            "I get an error message when I click on settings",
            "the video player stops after a few seconds",
            (
                "the [app|program|software|editor] [closes|quits|stops] [by itself|suddenly|without"
                " warning]"
            ),
            (
                "[images|photos|icons] are [not shown|missing|not loaded] [on the page|in the"
                " app|in the report]"
            ),
            "the [save|print|delete|send] button [does not work|does not react|has no effect]",
            (
                "the [sync|import|download] [hangs|stops|fails] [at 90 percent|every time|with an"
                " error]"
            ),
            "[the list|the table|the report] [is not loading|loads forever|is broken]",
            "[an error|an exception] [appears|occurs|shows up] when I [click|type|edit] something",
            "the [website|page|screen] [freezes|crashes|hangs] [on my laptop|on my phone]",
            (
                "[sorting|printing|copying|editing] [is broken|does not work] since the [new"
                " version|update]"
            ),
        ),
        "validation": (
            "the report page throws an exception when I open it",
            "your app closes itself after the update",
            "the save button is greyed out and nothing happens",
            "images are not displayed in the editor",
            "the sync hangs at 99 percent",
        ),
        "test": (
            "the application quits without warning when I open a file",
            "clicking on the print button has no effect",
            "the settings page loads forever",
            "an error pops up whenever I edit a table",
            "the sorting in the list view is broken",
            "the mobile app freezes on the start screen",
        ),
    },
    "feature": {
        "train": (
            "it would be [nice|great|helpful] to have a dark mode",
            "could you add [an export to Excel|a calendar view|support for French]",
            "I [wish|would love it if] the app had [a search|keyboard shortcuts|widgets]",
            "please add [an option|a way] to sort the list by date",
            "I suggest [an offline mode|a bigger font|a weekly summary]",
            "do you plan [to support Linux|a tablet version]",
            "my suggestion is to let users [rename folders|pin notes|share lists]",
            "a feature to [merge contacts|copy entries|undo changes] would be [useful|welcome]",
            "can you make it possible to [change colours|add comments|print labels]",
            "feature request: [reminders by mail|a map view|custom fields]",
            "I miss a function to [duplicate a project|archive old items]",
            "an integration with [our chat|other tools|my calendar] would help us",
            "it would help if the app could [read text aloud|translate messages]",
            "have you thought about [a desktop version|voice input]",
            "we would like to see [more languages|more templates] in the future",
            "an idea for the next version: [tags for files|a timeline]",
            (
                "[please consider|would you consider] [adding|building] [a dark theme|a chat|a"
                " print view]"
            ),
            (
                "[could|can] [you|the next release] [add|include|offer] [a preview|bigger"
                " buttons|spell checking]"
            ),
            (
                "[it would be good|it would be lovely|I would like it] if [we|I] could"
                " [group|filter|share] [items|tasks|pages]"
            ),
            (
                "I would [find|consider] [a button for this|an undo function|a shortcut]"
                " [useful|handy]"
            ),
            (
                "[I propose|I suggest|my idea is] to [add|show|include] [a clock|statistics|the"
                " weather]"
            ),
            (
                "a new [option|feature|function] [for|to help with] [teams|printing|notes] would be"
                " great"
            ),
            (
                "I'd [like|love] [the option|a way] to [choose colours|mark favourites|use my own"
                " logo]"
            ),
            (
                "will there be [a version for tablets|a new design|more themes] [one day|at some"
                " point]"
            ),
        ),
        "validation": (
            "please consider adding a night theme",
            "I would find a button for bulk editing useful",
            "could the next release include a print preview",
            "my idea is to show the weather in the planner",
            "it would be good if we could group the tasks",
        ),
        "test": (
            "would you consider building a version for smart watches",
            "I propose to add a shortcut for switching projects",
            "it would be lovely if the app supported drag and drop",
            "can you add a spell checker to the editor",
            "a new feature that lets us vote on ideas would be great",
            "I'd like the option to choose my own icons, which is not there today",
        ),
    },
}

CUES: Mapping[str, BySplit] = {
    "high": {
        "train": (
            "This is [urgent|very urgent|really urgent|an emergency|critical|extremely important].",
            (
                "I need [this solved|a solution|help|a fix|an answer] [today|right"
                " now|immediately|within the hour|now]."
            ),
            (
                "Please [fix|solve|handle|repair|answer] this [as soon as possible|at"
                " once|immediately|right away|today|now]."
            ),
            "We are losing [money|customers|sales] [every hour|because of this|every minute].",
            "Our whole [team|office|company|shop] is [blocked|stuck|down|waiting].",
            "[It|This] [cannot|can not|must not] wait.",
            "[Top|Highest|Maximum] priority, please.",
            "[Urgent|Emergency|Critical]!",
            "[ASAP|Asap] please.",
            "I have a [deadline|presentation|meeting] [in an hour|tonight|today].",
            "Act [now|quickly|fast], please, everything has stopped here.",
            "We cannot [work|continue|go on] until it is [fixed|solved].",
            "[Hurry|Please hurry], [I need it|we need it] [today|now].",
            "Nobody [can work|can do anything] [any more|right now].",
            "This has to be [done|fixed|resolved] [immediately|today|this hour].",
            "[Every minute counts|Time is running out|There is no time to lose].",
            "All [work|business|production] has stopped.",
            "It is a matter of [minutes|hours].",
            "I am [desperate|in a great hurry], please [help|act] [quickly|fast|at once].",
            "Stop everything else and [help|look at this].",
            "[I want|I expect] an [immediate|instant] [answer|reply|fix].",
            "The situation is [critical|serious|very urgent].",
            "An urgent [case|matter|problem] for us.",
        ),
        "validation": (
            "This is an extremely urgent matter.",
            "I must have an answer immediately.",
            "Nobody here can work because of it.",
            "Please help at once, it is critical.",
            "It needs to be done right now.",
        ),
        "test": (
            "Please treat this as very urgent.",
            "We need it resolved right away.",
            "All our work has stopped because of it.",
            "I need help immediately, please hurry up.",
            "This is a critical problem for our business.",
            "It has to be settled today as an emergency.",
        ),
    },
    "low": {
        "train": (
            "No [rush|hurry|stress|pressure].",
            "[There is|It is|There's] no [rush|hurry|pressure] [at all|here|from my side].",
            "Whenever you [have time|get to it|find a moment|like].",
            "[It is|This is|It's] not [urgent|important|critical|pressing].",
            "[Take|Please take] [your time|all your time].",
            "[It|This] can wait [until next week|a few weeks|till next month|a while|for now].",
            "Just [a minor thing|a small thing|for your information|a detail].",
            "Not a big [deal|problem], [I can wait|it can wait].",
            "[Low|Lowest|Very low] priority.",
            "Answer [when it suits you|whenever you want|some time].",
            "I am in no [hurry|rush].",
            "Nothing urgent.",
            "[Some time|Any time] [this month|this year|next month] is [fine|enough|early enough].",
            "[I do not need|We do not need] it [soon|quickly|this week].",
            "You [do not have to|need not] [hurry|answer soon|rush].",
            "[We|I] can [wait|live with it] [for some weeks|for a while|until the summer].",
            "Do it [at your leisure|when you are free|when things are quiet|one day].",
            "It is [only|just] a [minor|small|tiny] [thing|problem|matter].",
            "[No need|There is no need] to [rush|answer today|do it now].",
            "It does not matter when.",
            "[Not urgent|Not important], [just so you know|only a small thing].",
            "[An answer|A reply] next [month|week] [is fine|will do].",
        ),
        "validation": (
            "There is absolutely no rush.",
            "Feel free to answer whenever you have a moment.",
            "I can easily wait for a few weeks.",
            "Only a small matter, not urgent.",
            "Look at it some time when you are free.",
        ),
        "test": (
            "You can take all the time you want.",
            "It isn't urgent, any time is fine.",
            "No need to hurry with this one.",
            "This has a low priority for me.",
            "Please look into it whenever you find the time.",
            "I don't mind, it can wait some weeks.",
        ),
    },
    "normal": {
        "train": (
            "",
            (
                "[Thanks|Thank you|Many thanks|Thanks in advance][| for your help| for looking into"
                " it]."
            ),
            "Please [help|check|have a look|look into it|take a look].",
            "[Kind|Best|Warm] [regards|wishes][| from Rome| from our office].",
            "I look forward to your [reply|answer].",
            "[Can you|Could you] tell me what [to do|happened|went wrong]?",
            "I use the [web|mobile|desktop] [version|app].",
            "I have been a customer for [two|three|five] years.",
            "My colleague told me to write to you.",
            "[How can I|How do I] [solve this|get this sorted|go on from here]?",
            "My [customer|account|order] number is [4711|20381|5529].",
            "I am [in the Berlin office|on the business plan|a new customer|using Windows].",
            "It [started|happened] [yesterday|on Monday|last week].",
            "[What is going on|What should I do|Any idea why]?",
            "[I hope you can help|I would appreciate your help|Let me know what you need].",
            "[I tried it twice|I tried another browser|I checked it again].",
            "[You can reach me|Call me] [by mail|by phone|in the afternoon].",
            "Greetings from [Madrid|the north|our team].",
            "[Sincerely|Cheers|Yours truly|See you].",
            "[I attached a screenshot|A screenshot is attached|See the attached file].",
            "[This is the second time|It was fine before].",
            "[My name is Rita|I work for a school|We are a small shop].",
            "[Who can help me|Who should I talk to] [with this|about it]?",
            "I bought it [in your shop|online|last year].",
        ),
        "validation": (
            "",
            "Please let me know.",
            "Greetings from Oslo.",
            "I am on the free plan.",
            "What can be done?",
        ),
        "test": (
            "",
            "Please advise.",
            "Yours sincerely.",
            "I am writing from our Lisbon branch.",
            "Could someone look into this?",
            "Thanks a lot for your support.",
        ),
    },
}

OPENINGS: BySplit = {
    "train": (
        "[Hi|Hello|Hey|Good morning|Hi team|Hello support].",
        "Dear [support|team].",
        "Ticket:",
        "New ticket:",
    ),
    "validation": ("Good evening.", "Support ticket:", "Hey there."),
    "test": ("Good afternoon.", "Customer message:", "Dear Sir or Madam."),
}


def make(rng: random.Random, split: Split) -> Example:
    """Draw a ticket: an opening now and then, the issue, and a hint at how urgent it is.

    The hint comes before or after the issue.
    """
    category = rng.choice(list(ISSUES))
    priority = rng.choice(list(CUES))
    issue = capitalise(fill(rng, rng.choice(ISSUES[category][split]))) + "."
    parts = [issue, fill(rng, rng.choice(CUES[priority][split]))]
    if priority != "normal" and rng.random() < 0.25:
        parts.reverse()
    if rng.random() < 0.3:
        parts.insert(0, fill(rng, rng.choice(OPENINGS[split])))
    return Example(
        " ".join(part for part in parts if part), f"category={category}; priority={priority}"
    )


TASK = Task(
    name="triage",
    description=(
        "Sorts a support ticket into billing, login, shipping, bug or feature, with a high, normal"
        " or low priority."
    ),
    make=make,
    vocabulary={f"issues {key}": value for key, value in ISSUES.items()}
    | {
        f"cues {key}": {split: [cue for cue in cues if cue] for split, cues in value.items()}
        for key, value in CUES.items()
    }
    | {"openings": OPENINGS},
)
