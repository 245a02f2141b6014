"""Published prompts as text, for models with their own tokenizer.

Templates: IOI from Wang et al. 2022 (arXiv 2211.00593, appendix E), Greater-Than from Hanna et al.
2023 (arXiv 2305.00586), Docstring from Heimersheim & Janiak 2023 ("A circuit for Python docstrings
in a 4-layer attention-only transformer"). Corrupt prompts follow these papers: three unrelated names,
the start year 01, and other arguments in definition and documentation.

Only words that are a single token of the given tokenizer are used, and all prompts of a data set have
the same number of tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from pahq_plugin.errors import ProblemError, PromptError
from pahq_plugin.problems import vocabulary
from pahq_plugin.problems.prompt_files import KEYS

Tokenizer = Any
"""A tokenizer of ``transformers``; typed loosely since importing that library takes seconds."""

IOI_TEMPLATES: tuple[str, ...] = (
    "Then, {A} and {B} went to the {place}. {S} gave a {thing} to",
    "Then, {A} and {B} had a lot of fun at the {place}. {S} gave a {thing} to",
    "Then, {A} and {B} were working at the {place}. {S} decided to give a {thing} to",
    "After {A} and {B} went to the {place}, {S} gave a {thing} to",
    "When {A} and {B} got a {thing} at the {place}, {S} decided to give it to",
    "While {A} and {B} were working at the {place}, {S} gave a {thing} to",
    "While {A} and {B} were commuting to the {place}, {S} gave a {thing} to",
    "After the lunch, {A} and {B} went to the {place}. {S} gave a {thing} to",
    "Afterwards, {A} and {B} went to the {place}. {S} gave a {thing} to",
    "Friends {A} and {B} found a {thing} at the {place}. {S} gave it to",
)
ALIGNED_IOI_TEMPLATE = "When {A} and {B} went to the {place}, {S} gave a {thing} to"
GREATER_THAN_TEMPLATE = "The {event} lasted from the year {century}{year} to the year {century}"
DOCSTRING_TEMPLATE = (
    "def {name}(self, {A}, {B}, {C}, {D}):\n"
    '    """{w0} {w1} {w2}\n'
    "\n"
    "    :param {A_doc}: {w3} {w4}\n"
    "    :param {B_doc}: {w5} {w6}\n"
    "    :param"
)

_PLACES = ("garden", "hospital", "house", "office", "restaurant", "school", "station", "store")
_THINGS = ("basketball", "bone", "computer", "drink", "kiss", "necklace", "ring", "snack")
_YEARS = vocabulary.NUMBERS[2:99]
_ARGUMENTS = vocabulary.listed(
    """
    action address array base buffer callback channel client code color command config content count
    data date depth design document element end event field file files filter flag group handler
    height host image index input item key label last length level limit line list load local map
    message method mode model module name node note number object offset option order output page
    parent path plan port position prefix price process project property query range rate record
    region result role root row sample scale schema score section seed service shape size source
    start state status step store string style table tag target task test text time title token
    total tree type unit update url user value variable vector version view volume weight width
    window word
    """
)
_PROSE = vocabulary.listed(
    """
    air animal art author bank body book boy bread brother car cell century child church city column
    company couple court crime cup dark day death dinner door earth effect energy evening
    family farm father fire fish floor food forest friend game girl glass gold hair hand heart
    history horse hour island job king land law letter life light market meal metal milk moment
    money morning mother mountain music night ocean oil paper party peace people period piece place
    plant population power prison queen rain river road rock room sea season ship shoulder
    sister snow song star station stone street summer sun teacher truth village voice wall war
    water week wife wind winter woman wood world year
    """
)


@dataclass(frozen=True)
class _Filled:
    """A pair of texts, and the offsets in the clean one at which the words of ``word_idxs`` end."""

    clean: str
    corrupt: str
    answers: list[str]
    wrong_answers: list[str]
    ends: dict[str, int]


def text_prompts(
    task: str, tokenizer: Tokenizer, n: int, seed: int, aligned: bool = False
) -> dict[str, Any]:
    """Generate ``n`` different prompts of ``task`` in the host's JSON format, as text without BOS.

    ``aligned`` puts every word of ``word_idxs`` at the same position in every prompt, as position-wise
    edges need; IOI then has one template, and the first name is the answer. ``word_idxs`` are counted
    without BOS, and empty if words are not aligned. Answers keep their leading space.

    Raises:
        ProblemError: the task is unknown.
        PromptError: the tokenizer splits too many words to find ``n`` prompts of one length.
    """
    if task not in TEXT_TASKS:
        known = ", ".join(TEXT_TASKS)
        raise ProblemError(f"no text prompts for {task!r}; there are prompts for {known}")
    rng = Random(f"text/{task}/{seed}")
    words = _Words(tokenizer)
    found = _of_one_kind(TEXT_TASKS[task](words, rng, aligned), words, n)
    if len(found) < n:
        raise PromptError(f"only {len(found)} of {n} prompts of {task!r} fit this tokenizer")
    return {
        "seq_labels": None,
        "word_idxs": words.word_idxs(found[0]),
        "prompts": [{key: getattr(filled, key) for key in KEYS} for filled in found],
    }


class _Words:
    """Selects words that are one token after a space, and finds words in texts."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def single(self, words: Sequence[str], at_least: int) -> list[str]:
        kept = [word for word in words if len(self.ids(f" {word}")) == 1]
        if len(kept) < at_least:
            raise PromptError(
                f"this tokenizer has only {len(kept)} of {len(words)} words such as {words[0]!r} "
                f"as single tokens; {at_least} are needed"
            )
        return kept

    def splits(self, century: str, year: str) -> bool:
        """Return whether a year is two tokens: its century after a space, and the rest without."""
        parts = (self.ids(f" {century}"), self.ids(year))
        return [len(part) for part in parts] == [1, 1] and (
            self.ids(f" {century}{year}") == [*parts[0], *parts[1]]
        )

    def ids(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]

    def kind(self, filled: _Filled) -> tuple[int, tuple[tuple[str, int], ...]] | None:
        """Return length and word positions, which a data set's prompts share; None if unusable."""
        clean, corrupt = self.ids(filled.clean), self.ids(filled.corrupt)
        places = self.word_idxs(filled)
        if len(clean) != len(corrupt) or places is None:
            return None
        return len(clean), tuple(places.items())

    def word_idxs(self, filled: _Filled) -> dict[str, int] | None:
        """Return the position of each word's last token; None if a token spans the end of a word."""
        whole = self.ids(filled.clean)
        places = {}
        for word, end in filled.ends.items():
            before = self.ids(filled.clean[:end])
            if whole[: len(before)] != before:
                return None
            places[word] = len(before) - 1
        return places


def _of_one_kind(draw: Callable[[], _Filled], words: _Words, n: int) -> list[_Filled]:
    """Draw ``n`` different prompts that share the commonest length and word positions."""
    sample = [words.kind(draw()) for _ in range(200)]
    counted = Counter(kind for kind in sample if kind is not None)
    if not counted:
        return []
    wanted = counted.most_common(1)[0][0]
    found: dict[str, _Filled] = {}
    for _ in range(100 + 50 * n):
        if len(found) == n:
            break
        filled = draw()
        if words.kind(filled) == wanted:
            found.setdefault(filled.clean, filled)
    return list(found.values())


def _ioi(words: _Words, rng: Random, aligned: bool) -> Callable[[], _Filled]:
    names = words.single(vocabulary.NAMES, 8)
    places, things = words.single(_PLACES, 2), words.single(_THINGS, 2)
    templates = (ALIGNED_IOI_TEMPLATE,) if aligned else IOI_TEMPLATES

    def draw() -> _Filled:
        template = rng.choice(templates)
        first, second, *unrelated = rng.sample(names, 5)
        subject, other = (second, first) if aligned or rng.random() < 0.5 else (first, second)
        fixed = {"place": rng.choice(places), "thing": rng.choice(things)}
        clean = template.format(A=first, B=second, S=subject, **fixed)
        corrupt = template.format(A=unrelated[0], B=unrelated[1], S=unrelated[2], **fixed)
        ends = _ioi_ends(clean, first, second) if aligned else {}
        return _Filled(clean, corrupt, [f" {other}"], [f" {subject}"], ends)

    return draw


def _ioi_ends(clean: str, io: str, subject: str) -> dict[str, int]:
    s1 = _end_of(clean, subject)
    return {
        "IO": _end_of(clean, io),
        "S1": s1,
        "S1+1": _end_of(clean, " went", s1),
        "S2": _end_of(clean, subject, s1),
        "end": len(clean),
    }


def _greater_than(words: _Words, rng: Random, aligned: bool) -> Callable[[], _Filled]:
    del aligned  # its prompts always are
    events = words.single(vocabulary.EVENTS, 2)
    centuries = [century for century in vocabulary.CENTURIES if words.splits(century, "01")]
    spans = [(c, year) for c in centuries for year in _YEARS if words.splits(c, year)]
    years = [year for year in vocabulary.NUMBERS if len(words.ids(year)) == 1]
    if not spans:
        raise PromptError("this tokenizer does not split years into century and rest, such as 17|32")

    def draw() -> _Filled:
        event, (century, year) = rng.choice(events), rng.choice(spans)
        clean = GREATER_THAN_TEMPLATE.format(event=event, century=century, year=year)
        corrupt = GREATER_THAN_TEMPLATE.format(event=event, century=century, year="01")
        return _Filled(
            clean,
            corrupt,
            answers=[other for other in years if other > year],
            wrong_answers=[other for other in years if other <= year],
            ends={"YY": _end_of(clean, f"{century}{year}"), "end": len(clean)},
        )

    return draw


def _docstring(words: _Words, rng: Random, aligned: bool) -> Callable[[], _Filled]:
    del aligned  # its prompts always are
    arguments, prose = words.single(_ARGUMENTS, 16), words.single(_PROSE, 14)

    def draw() -> _Filled:
        name, a, b, c, d, a2, b2, c2, a3, b3 = rng.sample(arguments, 10)
        fixed = {"name": name, "D": d}
        fixed |= {f"w{place}": word for place, word in enumerate(rng.sample(prose, 7))}
        clean = DOCSTRING_TEMPLATE.format(A=a, B=b, C=c, A_doc=a, B_doc=b, **fixed)
        corrupt = DOCSTRING_TEMPLATE.format(A=a2, B=b2, C=c2, A_doc=a3, B_doc=b3, **fixed)
        wrong = [f" {word}" for word in (a, b, d, a2, b2, c2)]
        return _Filled(clean, corrupt, [f" {c}"], wrong, _docstring_ends(clean, a, b, c))

    return draw


def _docstring_ends(clean: str, a: str, b: str, c: str) -> dict[str, int]:
    b_def = _end_of(clean, f", {b}")
    return {
        "A_def": _end_of(clean, f", {a}"),
        "B_def": b_def,
        ",_B": _end_of(clean, ",", b_def),
        "C_def": _end_of(clean, f", {c}"),
        "A_doc": _end_of(clean, f":param {a}"),
        "param_2": _end_of(clean, ":param", _end_of(clean, f":param {a}")),
        "B_doc": _end_of(clean, f":param {b}"),
        "param_3": len(clean),
    }


def _end_of(text: str, part: str, start: int = 0) -> int:
    return text.index(part, start) + len(part)


TEXT_TASKS: dict[str, Callable[[_Words, Random, bool], Callable[[], _Filled]]] = {
    "ioi": _ioi,
    "greater-than": _greater_than,
    "docstring": _docstring,
}
