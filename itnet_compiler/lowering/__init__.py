"""Lowerings: ways to run an integral, the planner that chooses between them."""
