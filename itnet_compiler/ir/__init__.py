"""The IR: domains, kernel families, the Integral node and its printed form."""
