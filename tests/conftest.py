"""What holds for all tests."""

import gc

import pytest


def pytest_collection_finish() -> None:
    """Set everything that was imported aside: each search for cycles through it would take seconds."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Cases of the conformance suites say themselves which of them are for ``make test-all``."""
    for item in items:
        case = getattr(item, "callspec", None) and item.callspec.params.get("case")
        if getattr(case, "is_exhaustive", False):
            item.add_marker(pytest.mark.exhaustive)
