"""Pages that refer to nothing outside, and whose data cannot become markup."""

from __future__ import annotations

import json

import pytest

from pahq_plugin.results.drawing.page import asset, json_text, page, scripts


def test_scripts_and_styles_are_of_a_size_to_be_read() -> None:
    for name in ("viewer.js", "picture.js", "viewer.css", "page.css"):
        assert 10 < len(asset(name).splitlines()) < 400


@pytest.mark.parametrize(
    "text", ["</script><script>alert(1)</script>", "<!--", "a&amp;b", "\u2028\u2029", "\ud800", "é\n"]
)
def test_no_text_ends_the_script_that_holds_it(text: str) -> None:
    written = json_text({text: [text]})
    assert json.loads(written) == {text: [text]}
    assert written.isascii() and not set("<>&") & set(written)


def test_numbers_that_json_lacks_are_refused() -> None:
    with pytest.raises(ValueError):
        json_text([float("nan")])


def test_the_title_is_text_and_the_body_markup() -> None:
    text = page("a <b> & $c", "<p>$1</p>", css=".own{}", js="own()")
    assert "<title>a &lt;b&gt; &amp; $c</title>" in text
    assert "<p>$1</p>" in text and ".own{}" in text and "own()" in text


def test_scripts_share_one_scope_of_their_own() -> None:
    joined = scripts(["camera.js", "elements.js"])
    assert joined.startswith("(() => {") and joined.endswith("})();\n")
    assert joined.index(asset("camera.js")) < joined.index(asset("elements.js"))
