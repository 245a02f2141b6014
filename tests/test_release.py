"""What a release carries: changelog, citation, licences, and versions that agree."""

from __future__ import annotations

import re
import tomllib
from datetime import date
from pathlib import Path
from typing import Any

import yaml

from pahq_plugin.results.card import CITATION

REPOSITORY = Path(__file__).resolve().parents[1]
SECTIONS = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
SEMANTIC = r"\d+\.\d+\.\d+(?:-[0-9A-Za-z.-]+)?"


def project() -> dict[str, Any]:
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def citation() -> dict[str, Any]:
    return yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))


def check_people(people: Any) -> None:
    assert isinstance(people, list) and people
    for person in people:
        assert set(person) in ({"name"}, {"family-names", "given-names"}), person
        assert all(isinstance(value, str) and value for value in person.values())


def test_the_changelog_follows_its_conventions() -> None:
    """Versions, newest first, each with a date but for the topmost; sections of Keep a Changelog."""
    text = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    assert text.startswith("# Changelog\n") and "keepachangelog.com" in text and "semver.org" in text
    heads = re.findall(r"^## (.*)$", text, re.MULTILINE)
    found = [re.fullmatch(rf"\[({SEMANTIC})\] - (unreleased|\d{{4}}-\d\d-\d\d)", head) for head in heads]
    assert found and all(found), heads
    versions = [match[1] for match in found if match]
    assert versions[0] == project()["version"]
    numbers = [tuple(map(int, version.split("-")[0].split("."))) for version in versions]
    assert numbers == sorted(numbers, reverse=True) and len(set(versions)) == len(versions)
    dates = [match[2] for match in found if match]
    assert all(when != "unreleased" and date.fromisoformat(when) for when in dates[1:])
    assert set(re.findall(r"^### (.*)$", text, re.MULTILINE)) <= SECTIONS


def test_the_version_is_a_semantic_one() -> None:
    assert re.fullmatch(SEMANTIC, project()["version"])


def test_the_citation_file() -> None:
    """The keys that its schema (1.2.0) requires, and the paper's authors in their order."""
    found = citation()
    assert found["cff-version"] == "1.2.0" and found["type"] == "software"
    assert isinstance(found["message"], str) and found["title"] == project()["name"]
    assert str(found["version"]) == project()["version"] and found["license"] == project()["license"]
    check_people(found["authors"])
    paper = found["preferred-citation"]
    assert paper["type"] == "article" and paper["year"] == 2025 and 1 <= paper["month"] <= 12
    assert paper["url"].endswith("2510.23264") and "PAHQ" in paper["title"]
    for entry in (paper, *found["references"]):
        assert {"type", "title", "authors"} <= set(entry)
        check_people(entry["authors"])
    names = [person["family-names"] for person in paper["authors"]]
    assert names == ["Wang", "Yang", "Wang", "Zhang", "Xie", "Hu", "Wang"]


def test_cards_cite_the_same_paper() -> None:
    paper, text = citation()["preferred-citation"], " ".join(CITATION.split())
    assert f"title = {{{' '.join(paper['title'].split())}}}" in text
    people = " and ".join(f"{p['family-names']}, {p['given-names']}" for p in paper["authors"])
    assert f"author = {{{people}}}" in text


def test_licence_notices_name_everything_bundled() -> None:
    """What is packaged beside Python code, and every dependency that is imported."""
    notices = (REPOSITORY / "THIRD_PARTY.md").read_text(encoding="utf-8")
    assert "THIRD_PARTY.md" in project()["license-files"] and "LICENSE" in project()["license-files"]
    for part in (
        "problems/bundled/model.safetensors",
        "results/drawing/assets/*",
        "problems/templates.py",
    ):
        assert part in notices
        assert list((REPOSITORY / "pahq_plugin").glob(part))
    packages = [re.split(r"[\[<>=! ]", entry)[0] for entry in project()["dependencies"]]
    assert [name for name in packages if f"| {name}" not in notices] == []


def test_assets_hold_no_code_of_others() -> None:
    """Bundled libraries give themselves away by long lines and by comments with a licence."""
    for file in (REPOSITORY / "pahq_plugin/results/drawing/assets").iterdir():
        text = file.read_text(encoding="utf-8")
        assert "/*!" not in text and "@license" not in text, file
        assert max(map(len, text.splitlines())) < 400, file
