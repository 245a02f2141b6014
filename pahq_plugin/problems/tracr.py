"""All prompts of the host's two Tracr problems, in its JSON format (its wheel lacks these files).

Tracr compiles programs into transformers (Lindner et al. 2023, arXiv 2301.05062), so the model's
function is known and answers need not be measured. Prompts are BOS and five words.
"""

from __future__ import annotations

from itertools import product
from random import Random
from typing import Any, Literal

from pahq_plugin.errors import ProblemError

TracrKey = Literal["reverse", "xproportion"]

LENGTH = 5
TOKEN_IDS: dict[str, dict[int | str, int]] = {
    "reverse": {1: 0, 2: 1, 3: 2, "BOS": 3},
    "xproportion": {"BOS": 0, "w": 2, "x": 3, "y": 4, "z": 5},
}
"""Token id of each word, as in tracr's own encoder; the missing id is its padding."""
REVERSE_OUTPUTS = 3


def tracr_prompts(key: str, seed: int) -> dict[str, Any]:
    """Return all prompts of one problem in a seeded order, each paired with another random prompt.

    There are 3^5 = 243 prompts for ``"reverse"`` and 4^5 = 1024 for ``"xproportion"``, in the host's
    JSON format. ``clean`` and ``corrupt`` are token ids ``[pos]``; ``answers`` and ``wrong_answers``
    are ``[pos 1]`` without the position of BOS: ids of the output vocabulary for reverse, the fraction
    of x among the words so far for xproportion. A wrong answer is that of the corrupt prompt; for
    reverse it is another id if the two answers are equal.

    Raises:
        ProblemError: the problem is unknown.
    """
    if key not in TOKEN_IDS:
        raise ProblemError(f"no tracr model {key!r}; the known ones are {', '.join(TOKEN_IDS)}")
    rng = Random(f"tracr-{key}/{seed}")
    words = [word for word in TOKEN_IDS[key] if word != "BOS"]
    prompts = list(product(words, repeat=LENGTH))
    rng.shuffle(prompts)
    return {
        "seq_labels": ["BOS", *(f"word {place}" for place in range(1, LENGTH + 1))],
        "word_idxs": {},
        "prompts": [
            _pair(key, prompt, prompts[(i + rng.randrange(1, len(prompts))) % len(prompts)])
            for i, prompt in enumerate(prompts)
        ],
    }


def _pair(key: str, clean: tuple[int | str, ...], corrupt: tuple[int | str, ...]) -> dict[str, Any]:
    right, wrong = _answers(key, clean), _answers(key, corrupt)
    if key == "reverse":
        wrong = [(a + 1) % REVERSE_OUTPUTS if a == b else b for a, b in zip(right, wrong, strict=True)]
    return {
        "clean": _encode(key, ("BOS", *clean)),
        "corrupt": _encode(key, ("BOS", *corrupt)),
        "answers": [[value] for value in right],
        "wrong_answers": [[value] for value in wrong],
    }


def _answers(key: str, prompt: tuple[int | str, ...]) -> list[float]:
    if key == "reverse":
        # The output vocabulary is the input vocabulary without BOS and padding, with the same ids.
        return [*_encode(key, prompt[::-1])]
    return [prompt[:end].count("x") / end for end in range(1, len(prompt) + 1)]


def _encode(key: str, prompt: tuple[int | str, ...]) -> list[int]:
    return [TOKEN_IDS[key][word] for word in prompt]
