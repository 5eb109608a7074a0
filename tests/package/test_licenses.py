"""NOTICE lists the licenses of all direct requirements, and none of any extra, with what it requires, is AGPL."""

import re

import pytest

from tests.reliability.licenses import (
    NOTICE,
    PACKAGE,
    UNKNOWN,
    dependencies,
    direct_requirements,
    license_of,
)

AFFERO = re.compile(r"\bAGPL|Affero", re.IGNORECASE)
GROUPS = direct_requirements()


def stated_licenses(package) -> str:
    """All that the metadata states; without the text of a license, which may name others."""
    metadata = package.metadata
    classifiers = [text for text in metadata.get_all("Classifier") or () if text.startswith("License")]
    first = (metadata.get("License") or "").strip().partition("\n")[0]
    return " ".join([metadata.get("License-Expression") or "", first, *classifiers])


@pytest.mark.parametrize("extra", GROUPS, ids=lambda name: name or "required")
def test_no_dependency_is_under_the_agpl(extra):
    """Its terms would reach whoever serves a model with this package."""
    found = dependencies(name for name in GROUPS[extra] if name != PACKAGE)
    assert found or extra == "track"
    bad = {name: stated_licenses(package) for name, package in found.items() if AFFERO.search(stated_licenses(package))}
    assert bad == {}


def test_notice_lists_every_requirement_once():
    listed = re.findall(r"^- ([\w.-]+): ", NOTICE.read_text(), re.MULTILINE)
    wanted = {name for names in GROUPS.values() for name in names if name != PACKAGE}
    assert sorted(listed) == sorted(wanted)


def test_most_licenses_are_known():
    packages = dependencies(name for names in GROUPS.values() for name in names if name != PACKAGE)
    unknown = [name for name, package in packages.items() if license_of(package) == UNKNOWN]
    assert len(unknown) < len(packages) / 10, unknown
