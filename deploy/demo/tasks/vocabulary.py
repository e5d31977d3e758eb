"""Words that several tasks draw on, a separate list for each split."""

from __future__ import annotations

import random

from deploy.demo.tasks.task import BySplit, list_words

FIRST_NAMES: BySplit = {
    "train": list_words(
        "Ana Bo Chen Dara Eli Fay Gus Hana Ivan Jude Karl Lena Mona Nils Olga Pavel Rita Sven Tara"
        " Umar Vera Walt Yara Zoe Alice Brian Carla Derek Elena Felix Grace Henry Irene Jack Kate"
        " Liam Maria Nora Oscar Paula Quinn Robert Susan Thomas Ursula Victor Wendy Xavier Yusuf"
        " Amir Bella Carlos Diana Edward Fatima George Helen Isaac Julia Kevin Laura Martin Nadia"
        " Peter Rosa Simon Theresa James Mary David Linda Michael Barbara William Emma Ahmed Aisha"
        " Anton Beatriz Benedikt Cecilia Claudio Dagmar Deepak Eduardo Elif Esther Fabian Fiona"
        " Giorgos Greta Hamid Hiroshi Ilse Imran Jasmin Joaquin Katarina Kofi Lars Lucia Magnus"
        " Malika Milan Mireille Nikolai Noor Odile Pablo Pilar Ravi Renata Samira Sanjay Tamara"
        " Thabo Ulrich Valentina Wojciech Xenia Yannick Zora Bartholomew Guinevere Leopold Octavia"
        " Thelma Winifred"
    ),
    "validation": list_words(
        "Priya Marcus Ingrid Tobias Leila Hugo Camille Dmitri Naomi Rafael Astrid Kenji Bridget"
        " Omar"
    ),
    "test": list_words(
        "Sofia Daniel Anika Bruno Chloe Emil Farah Gavin Hedda Idris Jonas Keiko Lorenzo Mirela"
        " Noah Petra Rowan Stella Viktor Zainab"
    ),
}

LAST_NAMES: BySplit = {
    "train": list_words(
        "Smith Brown Garcia Miller Davis Lopez Wilson Moore Taylor Lee White Harris Clark Lewis"
        " Young King Wright Hill Green Baker Nelson Carter Evans Turner Parker Collins Morris Reed"
        " Cook Bell Murphy Ward Cox Diaz Wood Gray Novak Schmidt Rossi Silva Kim Nguyen Singh Ali"
        " Ivanov Weber Dubois Jensen Costa Sato Khan Walker Hall Allen Abdullah Bergstrom Bianchi"
        " Castillo Cohen Dimitriou Eriksson Fernandez Fitzgerald Goldberg Haddad Hoffmann Iyer"
        " Janssen Kovacs Lambert Lehmann MacDonald Mbeki Nakamura Nowak Olsen Papadopoulos Pereira"
        " Quintero Ramirez Romero Santos Schneider Suzuki Takahashi Thompson Urbanski Villanueva"
        " Watanabe Yilmaz Zimmerman"
    ),
    "validation": list_words(
        "Fischer Bennett Okafor Larsen Moreau Tanaka Petrov Hughes Delgado Kowalski Sharma Foster"
    ),
    "test": list_words(
        "Andersson Becker Chowdhury Donovan Ferrari Gupta Hansen Ibrahim Kaplan Lindberg Mendez"
        " Oliveira Pearson Russo Stone Vargas"
    ),
}

THINGS: BySplit = {
    "train": list_words(
        "lamp|chair|desk|phone|cable|mug|book|rug|pen|bag|table|mirror|clock|pillow|blanket|"
        "keyboard|monitor|printer|speaker|camera|helmet|jacket|shirt|hat|wallet|candle|vase|"
        "basket|bottle|plate|bowl|spoon|kettle|toaster|blender|notebook|pencil|stapler|folder|"
        "ruler|marker|ladder|hammer|drill|screwdriver|bucket|towel|apple|orange|melon|cookie|"
        "sandwich maker|desk lamp|office chair|coffee mug|phone case|garden hose|water bottle|"
        "yoga mat|laptop stand|picture frame|table tennis bat|paper bag|gift card|tea cup|"
        "wall clock|door handle|sticker|stamp|ticket|magnet|balloon|bead|button|coin|shell|"
        "radiator|rocket|rosary|raincoat|racket|scooter|saucer|sandal|saddle|satchel|sensor|"
        "spatula|sponge|stool|syringe|tablet|tambourine|tapestry lamp|telescope|thermometer|"
        "tile|tractor|trampoline|tray|trophy mug|trumpet|turbine|typewriter|ukulele|"
        "vacuum cleaner|violin|waffle iron|wardrobe|wheelbarrow|windmill|zipper|anchor|apron|"
        "armchair|axe handle|badge|banner|barrel|bathrobe|beanbag|blazer|bonnet|bulb|calculator|"
        "canoe|carpet|cello|chandelier|compass bag|crayon|crib|curling iron|cutter|dumbbell|"
        "earring|easel|eraser|fan|faucet|feeder|filter|flute|fork|fountain|funnel|gasket|globe|"
        "goggle case|grater|guitar|harness bag|heater|hinge|hook|jar|jigsaw puzzle|kayak|kimono|"
        "knapsack|label|lampshade|lever|locket|mattress cover|microphone|microwave|mitten|mop|"
        "nail|necklace|needle|notepad|oven glove|paddle|pan|parasol|peeler|pendant|piano stool|"
        "pitcher|planter|postcard|pulley|quilt|recorder|ribbon|sausage|scarf|screw|shovel|sofa|"
        "spanner|sweater|tomato plant|toolbox|tulip|vest|walnut|wrench holder|xylophone|"
        "yoghurt pot"
    ),
    "validation": list_words(
        "teapot|scarf ring|umbrella|backpack|router|cushion|tripod|lantern|bracelet|doormat|"
        "headset|frying pan|bike pump|sketchbook|plum"
    ),
    "test": list_words(
        "hammock|napkin|projector|suitcase|thermos|paintbrush|webcam|curtain|whistle|flower pot|"
        "soap dispenser|sleeping bag|chess set|bookmark|charger|tent peg|lemon|cupcake"
    ),
}

# For training alone.
PLAIN = list_words(
    "above across admit again agree along amber angle apple arrow asked autumn avoid awake bakery"
    " basic basket beach began belong bench bitter blame blend board borrow bottle branch brave"
    " bread breeze bridge brief bright bring broken brother bubble bucket build burn butter cabin"
    " candle canvas carry castle catch cause cellar chance change cheap cheer chest choose circle"
    " claim clean clever climb cloth cloud coast coffee collar colour comes common copper corner"
    " cotton cough count course cousin cover crack cream cross crowd curtain dance danger decide"
    " deep degree delay dinner dirty dough dozen draft dream dress drift drink drive early earth"
    " edge eight either elbow empty enough enter equal escape evening every exact explain fabric"
    " faint fair fallen famous farmer feather fence fetch fever field fifth finger finish flame"
    " float flour folded forest forty found fresh friend frost fruit garden gather gentle giant"
    " given glass glove golden grain grass great green grief ground group guess guide habit hammer"
    " handle hardly harvest having heavy hidden honest hotel hungry hurry image indeed inside"
    " instead island itself jacket join journey judge jump kettle kitchen knife knock ladder"
    " language large later laugh learn least leather leave level likely linen listen little loose"
    " lower lucky lunch machine manner maple market matter meadow measure melt mention metal middle"
    " minute mirror missing moment morning mostly motion mountain mouth music narrow nearly needle"
    " never nobody noise north notice nurse object ocean offer often onion orange orchard other"
    " outside oven owner paint paper parcel partly passed pepper perhaps picture pillow planet"
    " pleasant pocket polite poor porch potato pound powder prefer present pretty proof proud pull"
    " purple quarter quick quiet quite rain raise rapid rather reach refuse regret remain repeat"
    " rescue result return rhythm river rough round ruin sadly sail salt sauce scale scene scratch"
    " season second secret seldom settle seven shadow shake sharp shine shirt shore should shout"
    " silent silver simple since single sister sleep slowly smell smoke smooth soap social soft"
    " someone soon sorry sound south spend spoke spread square stage stairs steady stone storm"
    " story strange street strong sugar summer supper sweet swim table taste teach thick thin"
    " thirsty though thread three throw thunder together tongue toward tower trade travel treat"
    " triangle trouble twelve twice under unless until upper useful usual valley village visit"
    " voice waist walnut warm waste water weather weekly welcome wheat wheel where which while"
    " whisper white whole whose wide window winter wisdom within wonder wooden worse worth would"
    " wrist yellow young "
)


def pluralise(thing: str) -> str:
    """Return the plural of one of the things above."""
    return thing + ("es" if thing.endswith(("sh", "ch", "s", "x")) else "s")


ONSETS = list_words("b br c ch d dr f fl g gr h j k kl l m n p pr qu r s sh sk st t th tr v w y z")
VOWELS = list_words("a e i o u a e i o ai ea ee oo ou ia")
CODAS = list_words("b ck d g l ll m n nd ng nt p r rk rn rt s ss st t x n r l")


def invent_word(rng: random.Random) -> str:
    """Invent a word that nobody knows, for training.

    It can only be copied, letter by letter, never recalled.
    """
    syllables = [rng.choice(ONSETS) + rng.choice(VOWELS) for _ in range(rng.randint(2, 3))]
    return "".join(syllables) + (rng.choice(CODAS) if rng.random() < 0.6 else "")


def join_words(rng: random.Random) -> str:
    """Join two plain words in one, for training.

    It is spelt like a word that exists, and cannot be recalled either.
    """
    return rng.choice(PLAIN) + rng.choice(PLAIN)
