"""Generate seeded prompts of the bundled tasks, in the host's JSON format, as token ids.

Each prompt is a pair. Its corrupt prompt is of one of two kinds, both present in every data set: *early*
ones differ from the first content word on, *late* ones only near the end. Engines may skip unchanged
positions, so both cases are exercised.

Tasks:
    ioi: indirect object identification (Wang et al. 2022, arXiv 2211.00593), two templates.
    greater-than: the year in which a span of time ends (Hanna et al. 2023, arXiv 2305.00586).
    induction: a sequence of words starts again (Olsson et al. 2022, arXiv 2209.11895).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any, Literal

from pahq_plugin.errors import ProblemError, PromptError
from pahq_plugin.problems import vocabulary as words

Split = Literal["train", "test"]
Kind = Literal["early", "late"]

KINDS: tuple[Kind, ...] = ("early", "late")
TEST_SHARE = 0.2
"""Fraction of all possible prompts that is never trained on."""

IOI_TEMPLATES = (
    "{} and {} went to the {place} , then {} gave a {thing} to",
    "When {} and {} went to the {place} , {} gave a {thing} to",
)
INDUCTION_LENGTH = 15
INDUCTION_PERIODS = range(8, 12)


@dataclass(frozen=True)
class Pair:
    """One clean prompt and its corrupt counterpart, as words without BOS.

    Both have the same length; answers are next words for ``clean``. ``content`` are the words that
    identify the prompt and determine its split.
    """

    content: tuple[str, ...]
    clean: tuple[str, ...]
    corrupt: tuple[str, ...]
    answers: tuple[str, ...]
    wrong_answers: tuple[str, ...]


@dataclass(frozen=True)
class BundledTask:
    """One task: how to draw a pair, and the names of its positions (BOS first)."""

    draw: Callable[[Random, Kind], Pair]
    seq_labels: tuple[str, ...]
    word_idxs: dict[str, int]


def generate(task: str, n: int, seed: int, split: Split = "train") -> dict[str, Any]:
    """Generate ``n`` different prompts of ``task``, the same in every process.

    They are in the host's JSON format. ``clean`` and ``corrupt`` are token ids ``[pos]`` with BOS first,
    ``answers`` and ``wrong_answers`` token ids. Kinds of corruption alternate. Prompts of the two splits
    never share their content.

    Raises:
        ProblemError: the task is unknown.
        PromptError: ``n`` is not positive, or fewer than ``n`` different prompts were found.
    """
    if task not in TASKS:
        raise ProblemError(f"no bundled task {task!r}; the known ones are {', '.join(TASKS)}")
    if n < 1:
        raise PromptError(f"the number of prompts must be at least 1, not {n}")
    # A string seeds Random through SHA-512, independently of PYTHONHASHSEED.
    rng = Random(f"{task}/{split}/{seed}")
    return {
        "seq_labels": list(TASKS[task].seq_labels),
        "word_idxs": dict(TASKS[task].word_idxs),
        "prompts": [_as_json(pair) for pair in _different_pairs(task, n, split, rng)],
    }


def split_of(task: str, content: tuple[str, ...]) -> Split:
    """Return the split of a content, by a hash that is the same on every machine."""
    hashed = hashlib.sha256("\n".join((task, *content)).encode()).digest()
    return "test" if int.from_bytes(hashed[:8], "big") < TEST_SHARE * 2**64 else "train"


def _different_pairs(task: str, n: int, split: Split, rng: Random) -> list[Pair]:
    pairs: dict[tuple[str, ...], Pair] = {}
    for _ in range(1000 + 100 * n):
        pair = TASKS[task].draw(rng, KINDS[len(pairs) % len(KINDS)])
        if pair.clean not in pairs and split_of(task, pair.content) == split:
            pairs[pair.clean] = pair
        if len(pairs) == n:
            return list(pairs.values())
    raise PromptError(f"only {len(pairs)} of {n} different {split} prompts of {task!r} were found")


def _as_json(pair: Pair) -> dict[str, list[int]]:
    return {
        "clean": words.encode((words.BOS, *pair.clean)),
        "corrupt": words.encode((words.BOS, *pair.corrupt)),
        "answers": words.encode(pair.answers),
        "wrong_answers": words.encode(pair.wrong_answers),
    }


def _ioi_pair(rng: Random, kind: Kind) -> Pair:
    first, second, *unrelated = rng.sample(words.NAMES, 5)
    place, thing = rng.choice(words.PLACES), rng.choice(words.OBJECTS)
    template = rng.choice(IOI_TEMPLATES)
    subject, other = rng.choice(((first, second), (second, first)))

    def filled(*names: str) -> tuple[str, ...]:
        return words.listed(template.format(*names, place=place, thing=thing))

    return Pair(
        content=(*sorted((first, second)), place, thing),
        clean=filled(first, second, subject),
        corrupt=filled(*unrelated) if kind == "early" else filled(first, second, other),
        answers=(other,),
        wrong_answers=(subject,),
    )


def _greater_than_pair(rng: Random, kind: Kind) -> Pair:
    events, regions = rng.sample(words.EVENTS, 2), rng.sample(words.REGIONS, 2)
    centuries = rng.sample(words.CENTURIES, 2)
    year = rng.randrange(2, 99)
    content = (events[0], regions[0], centuries[0], words.NUMBERS[year])
    start = (events[1], regions[1], centuries[1]) if kind == "early" else content[:3]
    return Pair(
        content=content,
        clean=_span(*content),
        corrupt=_span(*start, words.NUMBERS[1]),
        answers=words.NUMBERS[year + 1 :],
        wrong_answers=words.NUMBERS[: year + 1],
    )


def _span(event: str, region: str, century: str, year: str) -> tuple[str, ...]:
    return words.listed(
        f"{event} in {region} began and lasted from the year {century} {year} to the year {century}"
    )


def _induction_pair(rng: Random, kind: Kind) -> Pair:
    period = rng.choice(INDUCTION_PERIODS)
    drawn = rng.sample(words.FILLERS, 2 * period)
    sequence, fresh = drawn[:period], drawn[period:]
    repeats = INDUCTION_LENGTH - period
    clean = (*sequence, *sequence[:repeats])
    if kind == "early":
        # The last word keeps its first position, so the corrupt prompt also has one right answer.
        fresh[repeats - 1] = sequence[repeats - 1]
        corrupt, wrong = (*fresh, *sequence[:repeats]), fresh[repeats]
    else:
        other = rng.choice([place for place in range(period - 1) if place != repeats - 1])
        corrupt, wrong = (*clean[:-1], sequence[other]), sequence[other + 1]
    return Pair(
        content=tuple(sequence),
        clean=clean,
        corrupt=corrupt,
        answers=(sequence[repeats],),
        wrong_answers=(wrong,),
    )


TASKS: dict[str, BundledTask] = {
    "ioi": BundledTask(
        draw=_ioi_pair,
        # Positions at which the templates differ have both names.
        seq_labels=words.listed(
            "BOS A|When and|A B|and went|B to|went the|to P|the ,|P then|, S2 gave a O to"
        ),
        word_idxs={"S2": 10, "O": 13, "end": 14},
    ),
    "greater-than": BundledTask(
        draw=_greater_than_pair,
        seq_labels=words.listed("BOS N in R began and lasted from the year C1 Y to the year C2"),
        word_idxs={"noun": 1, "XX1": 10, "YY": 11, "XX2": 15},
    ),
    "induction": BundledTask(
        draw=_induction_pair,
        seq_labels=("BOS", *(f"word {place}" for place in range(1, INDUCTION_LENGTH + 1))),
        word_idxs={"end": INDUCTION_LENGTH},
    ),
}
