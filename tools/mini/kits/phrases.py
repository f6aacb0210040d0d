"""What a caption of the pack is about, and whether it takes an article."""

from __future__ import annotations

import re

MERGED = {
    "dinosaur": "creature", "campfire": "lamp", "grave": "decor", "bathroom": "furniture", "music": "leisure",
    "spacecraft": "aircraft", "landform": "nature", "sky": "nature", "body": "creature",
}  # fmt: skip
"""Headings of the lists of captions that are no category of their own."""
QUANTITIES = (
    "pile", "stack", "bunch", "group", "row", "pair", "piece", "pieces", "slice", "half", "string", "heap",
    "tuft", "puff", "patch", "cluster", "sheaf", "column", "set", "part", "clump", "strips", "bar", "loaf",
    "head", "ear", "cob", "sheet", "scoop", "bundle", "ring", "roll", "line", "rack",
)  # fmt: skip
MASSES = frozenset({
    "grass", "bread", "broccoli", "bamboo", "corn", "bacon", "salad", "gingerbread", "lettuce", "scaffolding",
    "rubble", "sand", "sushi", "wheat", "firewood", "hay", "meat", "soup", "stew", "rubber", "lightning",
    "armor", "sauerkraut", "cheese", "rice", "ham", "lumber", "earth", "moss", "gold", "ore", "spaghetti",
    "milk", "honey",
})  # fmt: skip
"""Nouns without an article."""
MASS_CAPTIONS = frozenset({
    "bacon", "raw bacon", "broccoli", "grass", "tall grass", "alien grass", "leafy grass", "bamboo", "gingerbread",
    "scaffolding", "rubble", "wheat", "green wheat", "campfire wood", "black armor", "golden armor", "leather armor",
    "metal armor", "diced meat", "mashed potato", "planet earth", "jupiter", "chopped lettuce", "cut cheese",
    "stew in a pan", "vegetable stew",
})  # fmt: skip
SINGULARS = frozenset({
    "glass", "cross", "bus", "cactus", "bass", "dress", "compass", "christmas", "lens", "canvas", "mattress",
    "grass", "moss", "abacus", "tennis", "chess", "octopus", "walrus", "hippopotamus", "rhinoceros", "platypus",
    "virus", "circus", "asparagus", "hibiscus", "lotus", "brontosaurus", "apatosaurus", "stegosaurus",
    "triceratops", "tyrannosaurus", "parasaurolophus", "barracks", "iris", "cutlass", "ibis", "venus",
    "princess", "waitress", "actress", "fortress",
})  # fmt: skip
"""Nouns that end in s and are one thing."""
PLURALS = frozenset({"teeth", "feet", "people", "mice", "geese", "boulders", "spaghetti", "children"})
PORTION = re.compile(
    r"(?:[\w'-]+ ){0,2}(?:loaf|head|bowl|pile|tuft|clump|stack|pan|pot|bar|ear|slice|piece|bag|crate|sheaf|patch) of "
)
PART = re.compile(r"(?:head|slice|piece|loaf|bowl|pile|patch|tuft|clump|stack|pan|pot|bar|sheaf|ear|whole|ham\b)")
MODIFIER = re.compile(
    r" (?:with|of|on|in|from|for|between|under|by|without|full|filled|hanging from|at|over|and a|and an|around)\b"
)


def head(caption: str) -> str:
    """The noun that a caption is about: "pizza" of "slice of pizza", "cup" of "cup with a straw"."""
    if caption.startswith("number "):
        return "number"
    if caption == "skull and crossbones":
        return "skull"
    for quantity in QUANTITIES:
        if found := re.match(rf"(?:[\w'-]+ )*?{quantity} of (?:an? )?(.+)$", caption):
            return head(found[1])
    if found := re.match(r"half an? (.+)$", caption):
        return head(found[1])
    return (MODIFIER.split(caption)[0] or caption).split()[-1]


def article(caption: str, noun: str) -> str:
    """ "a", or nothing before plurals and masses; a or an is left to those who write sentences."""
    if caption in ("portcullis", "skull and crossbones") or PORTION.match(caption):
        return "a"
    mass = noun in MASSES and not PART.match(caption) and "block" not in caption
    if caption in MASS_CAPTIONS or mass:
        return "a" if noun == "ham" else ""
    first = caption.split(" of ")[0]
    if first.split()[-1] in QUANTITIES or re.match(r"half an? ", caption):
        return "" if first.split()[-1] in ("pieces", "strips") or caption.startswith("half a") else "a"
    if re.match(r"(?:two|three|four|five|six) ", caption):
        return ""
    plural = noun.endswith("s") and noun not in SINGULARS and not noun.endswith(("ss", "us"))
    return "" if plural or noun in PLURALS else "a"
