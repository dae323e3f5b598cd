"""Attention to several sets of sources against its conformance suite, and against attention to all of them in a row."""

from __future__ import annotations

import pytest
import torch

from itnet_compiler.ir.domain import Keys
from itnet_compiler.ir.joined_attention import JoinedAttention
from tests.conformance import Case, check_case, conformance_cases


@pytest.mark.parametrize("case", conformance_cases(JoinedAttention), ids=str)
def test_conformance(case: Case) -> None:
    check_case(case)


def test_sets_in_a_row_are_one_attention():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(2, 3, 5, 4, 9, generator=generator, dtype=torch.float64)
    shared, own = (
        torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((2, 3, 7, 6), (2, 3, 5, 2, 6))
    )
    kernel = JoinedAttention("b h l i j", ("b h j1 e", "b h l j2 e"), "b h l i e")
    values = torch.cat([shared.unsqueeze(2).expand(2, 3, 5, 7, 6), own], 3)
    found = kernel.evaluate(Keys(), scores=scores, value=shared, value2=own)
    torch.testing.assert_close(found, scores.softmax(-1) @ values)
    assert kernel.describe().startswith("softmax(sets=2)") and len(kernel.formula()) == 2
