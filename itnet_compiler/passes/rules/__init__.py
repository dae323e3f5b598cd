"""Detection rules, one file each: from an anchor operator to a proposal, or a refusal with its reason."""
