"""Pair functions: what a kernel K(x, x') computes for one pair of positions, as a small program.

A user's function in plain torch is traced (``trace``), cut into parts of the query, of the source and of the pair
(``split``), differentiated (``adjoint``), and run by one of several back ends; ``dense`` is the one in plain torch.
"""
