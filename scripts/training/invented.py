"""Names, dates, amounts and places that nobody has: drawn for generated texts."""

import random

_FIRST = [
    "Alder",
    "Birch",
    "Cedar",
    "Delta",
    "Elm",
    "Falcon",
    "Garnet",
    "Harbor",
    "Iris",
    "Juniper",
    "Kestrel",
    "Linden",
]
_SECOND = [
    "Analytics",
    "Foods",
    "Freight",
    "Imaging",
    "Labs",
    "Marine",
    "Robotics",
    "Solar",
    "Systems",
    "Textiles",
]
_LEGAL = ["AG", "BV", "Inc", "Ltd", "SA"]
_MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
]
_PLACES = [
    "Antwerp",
    "Basel",
    "Cork",
    "Dresden",
    "Esbjerg",
    "Florence",
    "Geneva",
    "Hamburg",
    "Leeds",
    "Malmö",
]


def company(draw: random.Random) -> str:
    """A name of three words."""
    return " ".join(draw.choice(part) for part in (_FIRST, _SECOND, _LEGAL))


def date(draw: random.Random) -> str:
    """A day, as in 3 May 2019."""
    return f"{draw.randint(1, 28)} {draw.choice(_MONTHS)} {draw.randint(1995, 2026)}"


def amount(draw: random.Random) -> str:
    """A sum of money, as in EUR 4,300."""
    return f"{draw.choice(('EUR', 'USD', 'CHF'))} {draw.randint(1, 900) * 100:,}"


def place(draw: random.Random) -> str:
    """A town."""
    return draw.choice(_PLACES)
