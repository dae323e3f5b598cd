"""What holds for all tests."""

import gc
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent


def pytest_collection_finish() -> None:
    """Set everything that was imported aside: each search for cycles through it would take seconds."""
    gc.collect()
    gc.freeze()


# Files of which ``make test`` takes every nth case of each test; ``make test-all`` takes all.
SAMPLED = {
    "integration/test_adapters.py": 3,
    "integration/test_precision.py": 4,
    "integration/test_timm.py": 3,
    "integration/test_transformers.py": 3,
    "integration/test_wrapping.py": 4,
    "passes/rules/test_linear_attention.py": 2,
    "passes/rules/test_long_convolution.py": 2,
    "passes/rules/test_matrix_state.py": 4,
    "test_hard.py": 2,
    "test_traps.py": 2,
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark what is left to ``make test-all``; cases of the conformance suites say it themselves."""
    seen = Counter()
    for item in items:
        case = getattr(item, "callspec", None) and item.callspec.params.get("case")
        place = item.path.relative_to(ROOT).as_posix()
        seen[place, item.originalname] += 1
        left = place in SAMPLED and (seen[place, item.originalname] - 1) % SAMPLED[place] > 0
        if left or getattr(case, "is_exhaustive", False):
            item.add_marker(pytest.mark.exhaustive)
