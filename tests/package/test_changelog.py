"""The changelog, the citation and the package agree."""

import re

import yaml

import sid_lsg
from sid_lsg.options.renamed import RENAMED
from tests.helpers.paths import REPOSITORY

CHANGELOG = (REPOSITORY / "CHANGELOG.md").read_text()


def test_the_newest_version_is_that_of_the_package() -> None:
    versions = re.findall(r"^## \[(.+?)\] - (unreleased|\d{4}-\d\d-\d\d)$", CHANGELOG, re.MULTILINE)
    assert versions[0][0] == sid_lsg.__version__


def test_renamed_options_are_listed() -> None:
    rows = dict(re.findall(r"^ *\| `--([\w.]+)` \| `--([\w.]+)` \|$", CHANGELOG, re.MULTILINE))
    assert rows == RENAMED


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert citation["version"] == sid_lsg.__version__
    assert citation["license"] == "Apache-2.0"
