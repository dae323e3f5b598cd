"""Passes over captured graphs: detection rules, their driver, verification, and the analyses they rest on."""
