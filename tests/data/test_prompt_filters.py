"""Rules for captions, and sets of fingerprints."""

import random

import pytest

from sid_lsg.data import prompt_filters
from sid_lsg.data.prompt_filters import Filters, Overlap, Seen, words


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("A dog's  Ball!", ["a", "dogs", "ball"]),
        ("a dog\u2019s ball", ["a", "dogs", "ball"]),
        ("Cafe\u0301 \uff21", ["café", "a"]),  # composed, and full width
        ("?!", []),
    ],
)
def test_words_are_those_that_people_would_call_equal(text: str, found: list[str]) -> None:
    assert words(text) == found


ENGLISH = [
    "a red cat", "red car", "Two dogs, on a log.", "statue of the Virgen de Guadalupe in a church",
    "a café in Zürich", "the cast of La La Land at the premiere",
]  # fmt: skip
FOREIGN = [
    "ein Hund mit einem Ball", "un chat noir sur la table", "el perro de la casa",
    "een man en zijn hond", "um gato com chapéu", "en hund och ett barn",
]  # fmt: skip
OTHER_SCRIPTS = ["собака играет в мяч", "一只 红色 的 猫", "赤い猫 photo", "كلب يلعب الكرة"]


@pytest.mark.parametrize(
    ("language", "reasons"),
    [
        ("any", (None, None, None)),
        ("latin", (None, None, "other script")),
        ("english", (None, "other language", "other script")),
    ],
)
def test_languages(
    language: prompt_filters.PromptLanguage, reasons: tuple[str | None, ...]
) -> None:
    filters = Filters(language=language)
    for texts, reason in zip((ENGLISH, FOREIGN, OTHER_SCRIPTS), reasons, strict=True):
        assert {text: filters.reason(text) for text in texts} == dict.fromkeys(texts, reason)


def test_each_caption_has_the_first_reason_that_applies() -> None:
    excluded = "A man riding a wave on top of a surfboard."
    filters = Filters(
        min_words=2, max_words=12, listed=frozenset({"gun", "naked eye"}),
        overlap=Overlap([excluded, "Two cats"]),
    )  # fmt: skip
    reasons = {
        "": "blank",
        " ... ": "blank",
        "gun": "too short",
        "gun " * 13: "too long",
        "a GUN, loaded": "listed word",
        "guns of Navarone": None,
        "seen with the naked eye": "listed word",
        "an eye, naked": None,
        "two  cats!": "excluded text",
        "two cats asleep": None,
        "photo: a man riding a wave on top of": "excluded text",  # eight words in a row
        "photo: a man riding a wave on top": None,  # seven
        "a man riding a wave": None,
        "Two cats - asleep": "duplicate",
    }
    assert {text: filters.reason(text) for text in reasons} == reasons


def test_seen_equals_a_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_filters, "_RECENT", 7)
    seen, expected = Seen(), set[int]()
    draw = random.Random(0)
    extremes = [0, 2**64 - 1, 2**63, 2**53 + 1, 2**53]
    for _ in range(3000):
        number = draw.choice([draw.randrange(900), draw.choice(extremes)])
        assert seen.add(number) == (number not in expected)
        expected.add(number)
    lengths = [len(some) for some in seen._packed]
    assert len(lengths) <= 8
    assert sum(lengths) + len(seen._recent) == len(expected)
