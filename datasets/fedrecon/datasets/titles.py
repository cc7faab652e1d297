"""Invented film titles: readable, unique, with a year; no film is meant by any of them."""

import numpy as np

FIRST = (
    "Amber", "Ashen", "Borrowed", "Brass", "Broken", "Clockwork", "Cobalt", "Copper", "Counted", "Crooked", "Distant",
    "Drowned", "Dusty", "Eleventh", "Feathered", "Folded", "Forgotten", "Frozen", "Gilded", "Glass", "Granite",
    "Hidden", "Hollow", "Honest", "Hungry", "Idle", "Inland", "Ivory", "Lacquered", "Lantern", "Last", "Lesser",
    "Lopsided", "Marble", "Mended", "Midnight", "Misplaced", "Narrow", "Paper", "Patient", "Pewter", "Quiet",
    "Reluctant", "Rented", "Saffron", "Salted", "Second", "Seventh", "Silent", "Slender", "Spare", "Stubborn",
    "Sunken", "Tangled", "Tin", "Unmarked", "Unsent", "Velvet", "Wandering", "Winter",
)  # fmt: skip
SECOND = (
    "Accordion", "Almanac", "Apothecary", "Archivist", "Astronomer", "Balcony", "Beekeeper", "Bicycle", "Bridge",
    "Cartographer", "Cellist", "Chandelier", "Compass", "Corridor", "Courier", "Dentist", "Dictionary", "Elevator",
    "Envelope", "Ferry", "Ferryman", "Fountain", "Gardener", "Glacier", "Greenhouse", "Harbour", "Horologist",
    "Hourglass", "Inheritance", "Innkeeper", "Juggler", "Kettle", "Ladder", "Librarian", "Lighthouse", "Locksmith",
    "Magpie", "Meridian", "Miller", "Monsoon", "Museum", "Notary", "Observatory", "Orchard", "Parade", "Pharmacist",
    "Pianist", "Postmistress", "Railway", "Reservoir", "Satellite", "Seamstress", "Staircase", "Surveyor", "Telegram",
    "Thermometer", "Umbrella", "Ventriloquist", "Weathervane", "Zeppelin",
)  # fmt: skip
PATTERNS = ("The {} {}", "A {} {} in Spring", "Night of the {} {}", "My {} {}", "Return to the {} {}")
FIRST_YEAR, YEARS = 1931, 70


def invent_titles(count: int, random: np.random.Generator) -> tuple[str, ...]:
    """Invent film titles.

    Args:
        count: How many.
        random: Where chance comes from.

    Returns:
        `count` different titles such as `The Unsent Telegram (1974)`.
    """
    combinations = len(PATTERNS) * len(FIRST) * len(SECOND)
    chosen = random.permutation(combinations)
    years = FIRST_YEAR + random.integers(YEARS, size=count)
    titles = []
    for place in range(count):
        part, combination = divmod(place, combinations)
        rest, second = divmod(int(chosen[combination]), len(SECOND))
        pattern, first = divmod(rest, len(FIRST))
        name = PATTERNS[pattern].format(FIRST[first], SECOND[second])
        if pattern == 1 and FIRST[first][0] in "AEIOU":
            name = name.replace("A ", "An ", 1)
        sequel = f", Part {part + 1}" if part else ""
        titles.append(f"{name}{sequel} ({years[place]})")
    return tuple(titles)
