"""The vocabulary of the bundled model. A word's index in ``WORDS`` is its token id.

The bundled weights depend on exactly this order: after adding, moving or removing a word,
run ``python -m benchmarks.train_bundled_model`` again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from pahq_plugin.errors import PromptError

BOS = "BOS"


def listed(text: str) -> tuple[str, ...]:
    """Split ``text`` into words at white space."""
    return tuple(text.split())


FUNCTION_WORDS: tuple[str, ...] = listed(", When and then went to the gave a in began lasted from year")

NAMES: tuple[str, ...] = listed(
    """
    Aaron Adam Alan Alice Amy Andrew Anna Anthony Ben Brian Carl Charles Chris Daniel David Diana
    Edward Elena Emily Emma Eric Eva Frank George Grace Greg Hannah Helen Henry Ian Jack Jacob
    James Jane Jason Jennifer Jessica John Jonathan Joseph Julia Kate Kevin Laura Lisa Louis Lucy
    Maria Mark Martin Mary Matthew Michael Nicole Patrick Paul Peter Rachel Richard Robert Ruth
    Sarah Simon Sophia Stephen Susan Thomas Victor
    """
)

PLACES: tuple[str, ...] = listed(
    """
    airport bakery beach cafe church cinema garden gym hospital house library market museum office
    park restaurant school station store theatre
    """
)

OBJECTS: tuple[str, ...] = listed(
    """
    apple ball basket bone book bottle cake card coat computer drink flower hat kiss letter ring
    snack ticket toy watch
    """
)

EVENTS: tuple[str, ...] = listed(
    """
    blockade boom campaign chaos conflict crisis crusade drought dynasty exile expedition famine
    feud frost hunt invasion journey negotiation occupation pilgrimage plague quarrel raid rebellion
    reform reign revolt riot siege strike struggle truce voyage war
    """
)

REGIONS: tuple[str, ...] = listed(
    """
    Bavaria Bohemia Brittany Burgundy Castile England Flanders France Greece Ireland Italy Norway
    Poland Portugal Prussia Saxony Scotland Sicily Spain Sweden Tuscany Venice
    """
)

NUMBERS: tuple[str, ...] = tuple(f"{number:02d}" for number in range(100))
"""Two-digit words. As in GPT-2, centuries and the years within them share these words."""

CENTURIES: tuple[str, ...] = NUMBERS[11:20]

FILLERS: tuple[str, ...] = listed(
    """
    amber anchor arrow autumn bamboo barrel beacon bell blanket bridge bronze bucket button cabin
    camel candle canyon carbon castle cedar chalk cherry circle cloud clover cobalt comet copper
    coral cotton crystal daisy desert diamond dolphin dragon eagle echo ember engine falcon feather
    fern fiddle forest fossil fountain garlic ginger glacier granite hammer harbour hazel honey ink
    island ivory jacket jungle kettle ladder lantern lemon lily linen magnet maple marble meadow
    mirror mosaic needle nickel ocean olive onion orbit oyster paper pebble pepper pigeon pine
    planet prism quartz rabbit raven ribbon river saddle salmon shadow silver spider sugar temple
    thunder tulip tunnel turtle valley velvet violin walnut willow window winter
    """
)

WORDS: tuple[str, ...] = (
    BOS, *FUNCTION_WORDS, *NAMES, *PLACES, *OBJECTS, *EVENTS, *REGIONS, *NUMBERS, *FILLERS,
)  # fmt: skip

_ID_OF = {word: index for index, word in enumerate(WORDS)}


def encode(words: Iterable[str]) -> list[int]:
    """Return the token ids of ``words``, ``[pos]``.

    Raises:
        PromptError: a word is not in the vocabulary.
    """
    words = list(words)
    for word in words:
        if word not in _ID_OF:
            raise PromptError(
                f"the bundled model does not know the word {word!r}; "
                "its words are pahq_plugin.problems.vocabulary.WORDS"
            )
    return [_ID_OF[word] for word in words]


def decode(ids: Iterable[int]) -> list[str]:
    """Return the words of token ids ``[pos]``.

    Raises:
        PromptError: an id is outside the vocabulary.
    """
    ids = list(ids)
    for index in ids:
        if not 0 <= index < len(WORDS):
            raise PromptError(f"token id {index} is outside the vocabulary, 0 to {len(WORDS) - 1}")
    return [WORDS[index] for index in ids]


def digest() -> str:
    """Return the SHA-256 of the ordered words, which matches weights with the vocabulary."""
    return hashlib.sha256("\n".join(WORDS).encode()).hexdigest()
