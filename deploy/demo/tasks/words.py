"""Words that several tasks draw on, a separate list for each split."""

from __future__ import annotations

from deploy.demo.tasks.core import BySplit, listed

FIRST_NAMES: BySplit = {
    "train": listed(
        "Ana Bo Chen Dara Eli Fay Gus Hana Ivan Jude Karl Lena Mona Nils Olga Pavel Rita Sven Tara Umar Vera Walt Yara "
        "Zoe Alice Brian Carla Derek Elena Felix Grace Henry Irene Jack Kate Liam Maria Nora Oscar Paula Quinn Robert "
        "Susan Thomas Ursula Victor Wendy Xavier Yusuf Amir Bella Carlos Diana Edward Fatima George Helen Isaac Julia "
        "Kevin Laura Martin Nadia Peter Rosa Simon Theresa James Mary David Linda Michael Barbara William Emma Ahmed "
        "Aisha Anton Beatriz Benedikt Cecilia Claudio Dagmar Deepak Eduardo Elif Esther Fabian Fiona Giorgos Greta Hamid "
        "Hiroshi Ilse Imran Jasmin Joaquin Katarina Kofi Lars Lucia Magnus Malika Milan Mireille Nikolai Noor Odile "
        "Pablo Pilar Ravi Renata Samira Sanjay Tamara Thabo Ulrich Valentina Wojciech Xenia Yannick Zora Bartholomew "
        "Guinevere Leopold Octavia Thelma Winifred"
    ),
    "validation": listed("Priya Marcus Ingrid Tobias Leila Hugo Camille Dmitri Naomi Rafael Astrid Kenji Bridget Omar"),
    "test": listed(
        "Sofia Daniel Anika Bruno Chloe Emil Farah Gavin Hedda Idris Jonas Keiko Lorenzo Mirela Noah Petra Rowan Stella "
        "Viktor Zainab"
    ),
}

LAST_NAMES: BySplit = {
    "train": listed(
        "Smith Brown Garcia Miller Davis Lopez Wilson Moore Taylor Lee White Harris Clark Lewis Young King Wright Hill "
        "Green Baker Nelson Carter Evans Turner Parker Collins Morris Reed Cook Bell Murphy Ward Cox Diaz Wood Gray "
        "Novak Schmidt Rossi Silva Kim Nguyen Singh Ali Ivanov Weber Dubois Jensen Costa Sato Khan Walker Hall Allen "
        "Abdullah Bergstrom Bianchi Castillo Cohen Dimitriou Eriksson Fernandez Fitzgerald Goldberg Haddad Hoffmann "
        "Iyer Janssen Kovacs Lambert Lehmann MacDonald Mbeki Nakamura Nowak Olsen Papadopoulos Pereira Quintero "
        "Ramirez Romero Santos Schneider Suzuki Takahashi Thompson Urbanski Villanueva Watanabe Yilmaz Zimmerman"
    ),
    "validation": listed("Fischer Bennett Okafor Larsen Moreau Tanaka Petrov Hughes Delgado Kowalski Sharma Foster"),
    "test": listed(
        "Andersson Becker Chowdhury Donovan Ferrari Gupta Hansen Ibrahim Kaplan Lindberg Mendez Oliveira Pearson Russo "
        "Stone Vargas"
    ),
}

THINGS: BySplit = {
    "train": listed(
        "lamp|chair|desk|phone|cable|mug|book|rug|pen|bag|table|mirror|clock|pillow|blanket|keyboard|monitor|printer|"
        "speaker|camera|helmet|jacket|shirt|hat|wallet|candle|vase|basket|bottle|plate|bowl|spoon|kettle|toaster|"
        "blender|notebook|pencil|stapler|folder|ruler|marker|ladder|hammer|drill|screwdriver|bucket|towel|apple|orange|"
        "melon|cookie|sandwich maker|desk lamp|office chair|coffee mug|phone case|garden hose|water bottle|yoga mat|"
        "laptop stand|picture frame|table tennis bat|paper bag|gift card|tea cup|wall clock|door handle|sticker|stamp|"
        "ticket|magnet|balloon|bead|button|coin|shell|radiator|rocket|rosary|raincoat|racket|scooter|saucer|sandal|"
        "saddle|satchel|sensor|spatula|sponge|stool|syringe|tablet|tambourine|tapestry lamp|telescope|thermometer|tile|"
        "tractor|trampoline|tray|trophy mug|trumpet|turbine|typewriter|ukulele|vacuum cleaner|violin|waffle iron|"
        "wardrobe|wheelbarrow|windmill|zipper|anchor|apron|armchair|axe handle|badge|banner|barrel|bathrobe|beanbag|"
        "blazer|bonnet|bulb|calculator|canoe|carpet|cello|chandelier|compass bag|crayon|crib|curling iron|cutter|"
        "dumbbell|earring|easel|eraser|fan|faucet|feeder|filter|flute|fork|fountain|funnel|gasket|globe|goggle case|"
        "grater|guitar|harness bag|heater|hinge|hook|jar|jigsaw puzzle|kayak|kimono|knapsack|label|lampshade|lever|"
        "locket|mattress cover|microphone|microwave|mitten|mop|nail|necklace|needle|notepad|oven glove|paddle|pan|"
        "parasol|peeler|pendant|piano stool|pitcher|planter|postcard|pulley|quilt|recorder|ribbon|sausage|scarf|"
        "screw|shovel|sofa|spanner|sweater|tomato plant|toolbox|tulip|vest|walnut|wrench holder|xylophone|yoghurt pot"
    ),
    "validation": listed(
        "teapot|scarf ring|umbrella|backpack|router|cushion|tripod|lantern|bracelet|doormat|headset|frying pan|"
        "bike pump|sketchbook|plum"
    ),
    "test": listed(
        "hammock|napkin|projector|suitcase|thermos|paintbrush|webcam|curtain|whistle|flower pot|soap dispenser|"
        "sleeping bag|chess set|bookmark|charger|tent peg|lemon|cupcake"
    ),
}


def plural(thing: str) -> str:
    """The plural of one of the things above."""
    return thing + ("es" if thing.endswith(("sh", "ch", "s", "x")) else "s")
