"""Normal forms: sums of products however they are written, read backwards in the labels of their axes.

``labels`` follows axes through views, ``contraction`` and ``products`` read single operators, ``attention``,
``separable`` and ``matrix_state`` whole layers. They import no rule; the rules beside them make integrals of what they
find.
"""
