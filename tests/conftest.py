"""What holds for all tests."""

import gc


def pytest_collection_finish() -> None:
    """Set everything that was imported aside: each search for cycles through it would take seconds."""
    gc.collect()
    gc.freeze()
