"""Unify the networks of torch.nn, torchvision, timm and transformers; see ``python -m benchmarks.zoo --help``.

``catalog`` knows the networks, ``examine`` measures one, ``run`` does so for many, each in a process of its own, and
``document`` turns the records into docs/models.md.
"""
