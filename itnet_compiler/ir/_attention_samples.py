"""Conformance cases of attention with labelled axes."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

from .attention import Attention
from .domain import Keys
from .kernel import Sample, Spec
from .steps import Step

__all__ = ["samples"]


def samples() -> list[Sample]:
    """Every structural variant, with odd sizes among them."""
    plain = Attention("b h i c", "b h j c", "b h j e", "b h i e", "b h i j")
    heads = Attention("b i (h c)", "b j (h c)", "b j (h e)", "b i (h e)", "b h i j", sizes=(("h", 3),))
    flat = Attention("b i c", "b j c", "b j e", "b i e", "b i j")
    scale, mask = Step("times", 0.3), Step("plus", role="mask", layout="b 1 i j", hides=True)
    given = Step("plus", role="scores", layout="b h i j")
    hidden = Step("keep", -math.inf, "seen", "b 1 1 j")
    kept = Step("keep", -65504.0, "seen", "i j")
    causal = Step("causal", layout="i j")
    cap = (Step("times", 0.1), Step("tanh"), Step("times", 10.0))
    sizes = {"b": 2, "h": 3, "g": 2, "o": 4, "i": 5, "j": 7, "c": 4, "e": 6, "i1": 3, "i2": 2, "j1": 2, "j2": 4}
    mix = Step("mix", role="mixer", layout="g h", old="h", new="g")
    again = Step("mix", role="mixer2", layout="b o g", old="g", new="o")
    cases = [
        plain,
        replace(plain, steps=(scale,)),
        replace(plain, steps=(scale, mask)),
        replace(plain, steps=(mask, scale)),
        replace(plain, steps=(hidden, scale)),
        replace(plain, steps=(kept,)),
        replace(plain, steps=(replace(kept, kind="fill"),)),
        replace(plain, steps=(scale, kept, mask)),
        replace(plain, steps=(*cap, mask)),
        replace(plain, steps=(Step("times", role="factor", layout="h 1 1"), mask)),
        replace(plain, steps=(Step("times", role="factor", layout="i j"),)),
        replace(plain, steps=(replace(mask, kind="minus"), scale)),
        replace(plain, after=(Step("times", role="factor", layout="b 1 i j"),)),
        replace(plain, steps=(hidden,), after=(Step("nan_to_num"),)),
        replace(plain, after=(Step("times", role="factor", layout="b 1 i j"), Step("normalise", 9.0))),
        replace(plain, steps=(Step("plus", role="shift", layout="h i 1"), mask)),
        replace(flat, key="b c j", value="b e j", output="b e i", weights="b j i", returns_weights=True),
        Attention("c", "b j c", "b e j", "b e", "b j", steps=(Step("plus", role="shift", layout="1"),)),
        replace(plain, sink="h"),
        replace(plain, sink="1 h 1 1", steps=(scale, mask), returns_weights=True),
        replace(heads, sink="b (h i)", wide=True),
        replace(plain, steps=(mix,), value="b g j e", output="b g i e", weights="b g i j"),
        replace(plain, after=(replace(mix, layout="h g", old="h"),), value="b g j e", output="b i (g e)"),
        replace(
            plain,
            steps=(scale, mix, Step("plus", role="bias", layout="g 1 1")),
            after=(again,),
            value="b o j e",
            output="b o i e",
            weights="b g i j",
            returns_weights=True,
        ),
        Attention("h b i c", "h b j c", "g b j e", "g b i e", "h b i j", after=(mix,)),
        replace(plain, steps=(scale, causal)),
        replace(plain, steps=(causal, mask), returns_weights=True),
        replace(heads, steps=(causal, scale)),
        Attention("b h g i c", "b h j c", "b h j e", "b h g i e", "b h g i j", steps=(causal,)),
        replace(plain, steps=(mask,), returns_weights=True),
        replace(heads, steps=(scale,)),
        replace(heads, steps=(Step("plus", role="mask", layout="(b h) i j"),)),
        replace(heads, returns_weights=True),
        flat,
        replace(heads, memory=(0, 1, 2)),
        replace(plain, memory=(0, 2, 1, 3), steps=(kept,)),
        replace(flat, key="b c j", value="b e j", output="b e i", weights="b j i"),
        Attention("i c", "j c", "j e", "i e", "i j"),
        Attention("b h g i c", "b h j c", "b h j e", "b h g i e", "b h g i j", steps=(scale,)),
        Attention("b h g i c", "b h j c", "b h j e", "b h g i e", "b h g i j", steps=(kept,)),
        Attention("i c", "b j c", "b j e", "b i e", "b i j"),
        # Scores of a linear layer, as VOLO has them: queries and keys share no label but the channels.
        Attention(
            "b c i1",
            "(h g j) c",
            "b (h e j) i1",
            "b h i1 g e",
            "b h i1 g j",
            steps=(Step("plus", role="bias", layout="(h g j)"), scale),
            sizes=(("g", 2), ("h", 3), ("j", 7)),
        ),
        Attention("b h i c", "b j c", "b j e", "b h i e", "b h i j"),
        Attention(
            "b i1 i2 c",
            "b j1 j2 c",
            "b j1 j2 e",
            "b (i1 i2) e",
            "b i1 i2 j1 j2",
            steps=(
                Step("plus", role="rows", layout="b i1 i2 j1 1"),
                Step("plus", role="columns", layout="b i1 i2 1 j2"),
            ),
        ),
        replace(plain, steps=(scale, Step("plus", role="bias", layout="1 h i j", start=(0, 0, 1, 2)))),
        replace(heads, steps=(Step("plus", role="bias", layout="(b h) i j", start=(0, 1, 1)),), returns_weights=True),
        Attention("", "", "b j (h e)", "b i (h e)", "b h i j", (given, mask, scale), sizes=(("h", 3),)),
    ]
    extents = [sizes, sizes | {"i": 63, "j": 7}, sizes | {"i": 1, "j": 1}, sizes | {"i": 0}, sizes | {"b": 0}]
    found = []
    for number, (kernel, size) in enumerate(product(cases, extents)):
        if number % len(extents) == 0 or kernel in (cases[2], cases[5], cases[7], cases[12], cases[19], cases[24]):
            fixed = replace(kernel, sizes=tuple((label, size[label]) for label, _ in kernel.sizes))
            found.append(Sample(Spec(fixed, Keys(), "attention", tuple(fixed.layouts)), fixed.draws(size)))
    return found
