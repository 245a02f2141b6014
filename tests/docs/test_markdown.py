"""Pages are taken apart, and run, as `tests.docs.markdown` and `tests.docs.run_page` say."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.markdown import anchors, blocks, links, prose
from tests.docs.test_blocks import run_page

PAGE = """# Title
Text with `code` and [a link](other.md#there).

<!-- slow: it takes an hour -->
<!-- first: touch here -->
```sh
exit 1
```

- in a list:

  ```python title="file.py"
  x = 1
  ```

```
# no heading, [no link](nowhere.md)
```

## Last `part`
"""


def test_blocks_have_language_marks_and_title() -> None:
    first, second, third = blocks(PAGE)
    assert first.language == "sh" and first.source == "exit 1\n" and first.line == 7
    assert first.marks == {"slow": "it takes an hour", "first": "touch here"}
    assert (second.language, second.title, second.source, second.marks) == (
        "python", "file.py", "x = 1\n", {},
    )  # fmt: skip
    assert third.language == ""


def test_links_and_anchors_are_those_outside_of_blocks() -> None:
    assert links(PAGE) == ["other.md#there"]
    assert anchors(PAGE) == {"title", "last-part"}
    assert "exit 1" not in prose(PAGE)


def test_a_page_runs_in_one_namespace_and_folder(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        '```python title="made.py"\nvalue = 2\n```\n'
        "```python\nfrom made import value\n```\n"
        "<!-- first: echo 3 > before -->\n```sh\npip install nothing-of-this-name\ntest -f before\n```\n"
        "<!-- not run: it fails -->\n```sh\nexit 1\n```\n"
        "<!-- slow: so does this -->\n```sh\nexit 1\n```\n"
        "```text\nnothing\n```\n"
        "```python\nassert value == 2 and open('before').read() == '3\\n'\n```\n"
    )
    run_page(str(page), tmp_path)
    with pytest.raises(AssertionError, match="exit code 1"):
        run_page(str(page), tmp_path, "--slow")


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ("```python\n1 / 0\n```\n", 'page.md", line 2'),
        ("```python\nimport warnings\nwarnings.warn('careful')\n```\n", "careful"),
        ("```sh\nfalse\necho on\n```\n", "page.md:2: exit code 1"),
    ],
)
def test_a_block_that_fails_is_named(block: str, words: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(block)
    with pytest.raises(AssertionError) as failure:
        run_page(str(page), tmp_path)
    assert words in str(failure.value)
