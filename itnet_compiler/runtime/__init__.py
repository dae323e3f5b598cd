"""The runtime: generated code, variants, and the choice between them at every call."""
