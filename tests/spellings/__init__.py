"""Programs that are attention, and programs that only look like it; see ``attention`` and ``near_misses``."""
