"""The needle-in-a-haystack set: sentences made by rule, with numbers to find among them, the same on every machine."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_PEOPLE = _words("""
    actor baker banker barber builder butcher captain carpenter clerk cook cousin dancer dentist doctor driver
    editor farmer fisherman gardener goldsmith guard guide hunter judge lawyer librarian mason mechanic merchant
    miller minister musician nurse officer painter pilot plumber poet potter sailor sculptor shepherd singer
    student surgeon tailor teacher weaver writer
""")
_QUALITIES = _words("""
    amber ancient bitter black blue brave bright broken brown calm careful cheerful clever clumsy cold curious
    dusty eager early empty faded famous fearless friendly gentle golden green grey heavy honest hungry kind
    lonely long modest muddy narrow noisy old patient plain polite proud quiet red rich round rusty serious shy
    silver silent slow small smooth stubborn tall thin tired warm wide wild wise yellow young
""")
_THINGS = _words("""
    anchor apple axe barrel basket bell blanket bottle box bridle brush bucket button candle carpet chain chair
    clock coat coin compass cup curtain drum feather flute hammer helmet kettle key knife ladder lamp lantern
    letter lock map mirror needle oar parcel pearl pillow plate plough ribbon ring rope saddle sail scarf shovel
    spoon stool sword table tent thread trumpet umbrella violin wagon wheel whistle
""")
_PLACES = _words("""
    abbey airport bakery bank barn bay beach bridge canal castle cave cellar chapel cliff corner courtyard creek
    dock farm ferry field forest fountain garden gate harbour hill hospital hotel inn island kitchen lake
    library lighthouse market meadow mill mine monastery museum orchard palace park pier pond quarry railway
    river road roof school square stable station temple theatre tower tunnel valley village wall well workshop
""")
_ACTIONS = _words("""
    admired borrowed bought carried chose cleaned collected counted described dropped examined fetched followed
    forgot found guarded hid inherited kept lent lifted loved measured mended missed moved needed noticed
    ordered owned packed painted polished praised pulled pushed remembered repaired returned saved sold stole
    studied traded wanted washed watched weighed wrapped
""")
_TIMES = _words("""
    afterwards again always eventually finally gladly later meanwhile often once perhaps quickly rarely recently
    secretly seldom slowly sometimes soon suddenly today tomorrow twice usually yesterday
""")
_SHAPES = (
    "The {q} {p} {a} the {q} {t} near the {q} {l}.",
    "{T} a {q} {p} {a} that {t} beside the {q} {l}.",
    "Behind the {q} {l} some {p} {t} {a} the {q} {t}.",
    "My {q} {p} {a} one {q} {t} and another {q} {t}.",
    "{T} the {p} of the {l} {a} a {q} {q} {t}.",
    "In the {l} every {q} {p} {a} his {q} {t}.",
)
_SLOTS = {"q": _QUALITIES, "p": _PEOPLE, "t": _THINGS, "l": _PLACES, "a": _ACTIONS}
_CITIES = _words("""
    Accra Algiers Ankara Athens Baghdad Bamako Bangkok Belgrade Berlin Bern Bogota Brussels Bucharest Budapest
    Cairo Caracas Copenhagen Dakar Damascus Dhaka Dublin Geneva Hanoi Harare Havana Helsinki Islamabad Jakarta
    Kabul Kampala Kigali Kyoto Lagos Lima Lisbon London Luanda Lusaka Madrid Manila Milan Minsk Montreal Moscow
    Muscat Nairobi Naples Oslo Ottawa Paris Prague Quito Riga Rome Santiago Seoul Seville Sofia Stockholm Sydney
    Tallinn Tbilisi Tehran Tokyo Tripoli Tunis Venice Vienna Warsaw Zagreb Zurich
""")
NEEDLE = "The magic number of {city} is {number}."
_NEEDLE_WORDS = len(NEEDLE.split())


def needle_rows(*, words: int, depths: str, count: int, distractors: int, size: int, seed: int) -> list[dict[str, Any]]:
    """Rows with columns prompt, answer, needles, depth and words.

    The answer is the number that is asked for, or a JSON list of them in the order of the question; `needles` is always
    a list. Task k's first needle stands at depth k modulo the number of depths, its other needles at the depths that
    follow, and distractors anywhere.

    Args:
        words: of one haystack with its needles, up to the length of the last sentence.
        depths: numbers from 0 to 1, separated by commas.
        count: needles that are asked for.
        distractors: needles of other cities.

    Raises:
        ValueError: names the key, and what was expected.
    """
    grid = needle_depths(depths)
    problem = needle_problem(words, count, distractors)
    if problem is not None:
        raise ValueError("data.{}: {}".format(*problem))
    return [_row(random.Random(f"{seed}/{k}"), k, words, grid, count, distractors) for k in range(size)]


def needle_depths(text: str) -> tuple[float, ...]:
    """The numbers in `data.needle_depths`.

    Raises:
        ValueError: not numbers from 0 to 1, or one of them twice.
    """
    try:
        depths = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"data.needle_depths={text}: expected numbers separated by commas, such as 0,0.5,1") from None
    if not all(0 <= depth <= 1 for depth in depths) or len(set(depths)) != len(depths):
        raise ValueError(f"data.needle_depths={text}: expected different numbers from 0 (begin) to 1 (end)")
    return depths


def needle_problem(words: int, count: int, distractors: int) -> tuple[str, str] | None:
    """What makes these values impossible together: the last part of the key, and what was expected."""
    if count + distractors > len(_CITIES):
        return "needle_count", f"expected at most {len(_CITIES)} needles with data.needle_distractors={distractors}"
    if (count + distractors) * _NEEDLE_WORDS > words // 2:
        least = 2 * (count + distractors) * _NEEDLE_WORDS
        return "needle_words", f"half of the words would be needles; expected at least {least} for so many needles"
    return None


def _row(
    draw: random.Random, index: int, words: int, grid: tuple[float, ...], count: int, distractors: int
) -> dict[str, Any]:
    cities = draw.sample(_CITIES, count + distractors)
    numbers = [str(number) for number in draw.sample(range(10_000, 100_000), len(cities))]
    haystack = _sentences(draw, words - len(cities) * _NEEDLE_WORDS)
    places = [grid[(index + k) % len(grid)] for k in range(count)] + [draw.random() for _ in range(distractors)]
    sentences = len(haystack)
    # From the end on, so that one needle does not move the place of another.
    for depth, city, number in sorted(zip(places, cities, numbers, strict=True), reverse=True):
        haystack.insert(round(depth * sentences), NEEDLE.format(city=city, number=number))
    asked = cities[:count]
    return {
        "prompt": f"{' '.join(haystack)}\n\n{_question(asked)}",
        "answer": numbers[0] if count == 1 else json.dumps(numbers[:count]),
        "needles": numbers[:count],
        "depth": places[0],
        "words": sum(len(sentence.split()) for sentence in haystack),
    }


def _sentences(draw: random.Random, words: int) -> list[str]:
    found: list[str] = []
    length = 0
    while length < words or not found:
        found.append(_sentence(draw))
        length += len(found[-1].split())
    return found


def _sentence(draw: random.Random) -> str:
    parts = []
    for word in draw.choice(_SHAPES).split():
        if word == "{T}":
            parts.append(draw.choice(_TIMES).capitalize())
        elif word.startswith("{"):
            parts.append(draw.choice(_SLOTS[word[1]]) + word[3:])
        else:
            parts.append(word)
    return " ".join(parts)


def _question(cities: Sequence[str]) -> str:
    # Under 13 words without the cities: longer ones would make every held-out task a copy of a training task.
    if len(cities) == 1:
        return f"What is the magic number of {cities[0]}?"
    *first, last = cities
    return f"What are the magic numbers of {', '.join(first)} and {last}?"
