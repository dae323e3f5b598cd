"""Unrolled loops: found, proven, split and written as one node each; ``reroll`` drives it."""
