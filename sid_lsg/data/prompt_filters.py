"""Choose captions to train on, and say why others are left out."""

import hashlib
import re
import unicodedata
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from sid_lsg.options.choices import PromptLanguage

RUN = 8  # this many words in a row of an excluded text count as overlap
_RECENT = 1 << 16  # hashes in a Python set, before they are packed
_LATIN = 0.9  # share of the letters

_APOSTROPHES = str.maketrans("", "", "'`\u2019")
# Frequent words of English captions, and of those in German, French, Spanish, Portuguese, Italian,
# Dutch, Polish and Swedish that are rare in English ones.
_ENGLISH_WORDS = """
    a an and are as at by from for has her his holding in into is it its near next of on over some
    standing that the their there this to two up while with"""
_OTHER_WORDS = """
    der das den dem ein eine einem einen einer und mit auf im von le la les un une des du et
    avec sur dans est aux pour qui el los las una y con del por para en es os um uma e com da na
    il lo gli di su nel della sono het een van met op voor zijn de z w jest si\u0119 och ett av med
    f\u00fcr n\u00e3o p\u00e5"""
_ENGLISH, _OTHERS = frozenset(_ENGLISH_WORDS.split()), frozenset(_OTHER_WORDS.split())


def words(text: str) -> list[str]:
    """Return the words of a text, without case, accents' encoding, punctuation and apostrophes."""
    plain = unicodedata.normalize("NFKC", text).casefold().translate(_APOSTROPHES)
    return re.findall(r"\w+", plain)


def fingerprint(text: Sequence[str]) -> int:
    """Return 64 bits that are equal for equal words."""
    return int.from_bytes(hashlib.blake2b(" ".join(text).encode(), digest_size=8).digest(), "big")


class Seen:
    """A set of fingerprints that takes 8 bytes for each, and twice that while it is packed."""

    def __init__(self) -> None:
        self._recent: set[int] = set()
        self._packed: list[np.ndarray] = []  # sorted; each has at most half the previous length

    def add(self, number: int) -> bool:
        """Add a fingerprint; return False if it was there."""
        if number in self._recent or any(_contains(some, number) for some in self._packed):
            return False
        self._recent.add(number)
        if len(self._recent) >= _RECENT:
            latest = np.fromiter(self._recent, np.uint64, len(self._recent))
            self._recent.clear()
            while self._packed and len(self._packed[-1]) < 2 * len(latest):
                latest = np.concatenate([self._packed.pop(), latest])
            latest.sort()
            self._packed.append(latest)
        return True


class Overlap:
    """Texts that captions must not contain: fingerprints of whole texts and of runs of words.

    A caption overlaps if it has the same words as a text, or `RUN` words in a row of one. It takes
    8 bytes for each text and each run.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        found = array("Q")
        for text in texts:
            found.extend(self._of(words(text)))
        self._known = np.unique(np.frombuffer(found, np.uint64) if found else np.empty(0, "u8"))

    def __call__(self, text: list[str]) -> bool:
        """Return True if the words of a caption overlap."""
        if not len(self._known):
            return False
        asked = np.array(self._of(text), np.uint64)
        places = np.searchsorted(self._known, asked).clip(max=len(self._known) - 1)
        return bool((self._known[places] == asked).any())

    @staticmethod
    def _of(text: list[str]) -> list[int]:
        runs = (text[start : start + RUN] for start in range(len(text) - RUN + 1))
        return [fingerprint(["", *text]), *map(fingerprint, runs)]


@dataclass
class Filters:
    """Rules for captions, which are applied in this order.

    Attributes:
        min_words: Fewest words of a caption.
        max_words: Most words; None for no limit.
        language: `latin`: 90% of the letters are Latin. `english`: also, no more words are typical
            of other European languages than of English. `any`: no rule.
        listed: Words and phrases that captions must not contain, each as its words joined by
            spaces.
        overlap: Texts that captions must not contain.
        seen: The captions that were kept before.
    """

    min_words: int = 1
    max_words: int | None = None
    language: PromptLanguage = "any"
    listed: frozenset[str] = frozenset()
    overlap: Overlap = field(default_factory=lambda: Overlap([]))
    seen: Seen = field(default_factory=Seen)

    def __post_init__(self) -> None:
        self._lengths = sorted({phrase.count(" ") + 1 for phrase in self.listed})

    def reason(self, text: str) -> str | None:
        """Return why a caption is left out; None if it is kept, and a later equal one is not."""
        found = words(text)
        if not found:
            return "blank"
        if len(found) < self.min_words:
            return "too short"
        if self.max_words is not None and len(found) > self.max_words:
            return "too long"
        if self.language != "any" and not _is_latin(text):
            return "other script"
        if self.language == "english" and not _is_english(found):
            return "other language"
        if any(self._parts(found, length) & self.listed for length in self._lengths):
            return "listed word"
        if self.overlap(found):
            return "excluded text"
        return None if self.seen.add(fingerprint(found)) else "duplicate"

    @staticmethod
    def _parts(found: list[str], length: int) -> set[str]:
        """Return all parts of this many words."""
        if length == 1:
            return set(found)
        return {" ".join(found[i : i + length]) for i in range(len(found) - length + 1)}


def _contains(packed: np.ndarray, number: int) -> bool:
    place = int(np.searchsorted(packed, np.uint64(number)))
    return place < len(packed) and int(packed[place]) == number


def _is_latin(text: str) -> bool:
    if text.isascii():
        return True
    letters = [ord(letter) for letter in text if letter.isalpha()]
    latin = sum(code < 0x250 or 0x1E00 <= code < 0x1F00 for code in letters)
    return latin >= _LATIN * len(letters)


def _is_english(found: list[str]) -> bool:
    english = sum(word in _ENGLISH for word in found)
    return english >= sum(word in _OTHERS for word in found)
