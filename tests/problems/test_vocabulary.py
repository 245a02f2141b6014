"""Words of the bundled model and their ids."""

from __future__ import annotations

from pahq_plugin.problems import vocabulary


def test_vocabulary_goes_there_and_back() -> None:
    assert len(set(vocabulary.WORDS)) == len(vocabulary.WORDS)
    assert vocabulary.WORDS[0] == vocabulary.BOS
    assert len(vocabulary.NAMES) >= 60
    ids = vocabulary.encode(vocabulary.WORDS)
    assert ids == list(range(len(vocabulary.WORDS)))
    assert tuple(vocabulary.decode(ids)) == vocabulary.WORDS
