"""verl's seam for advantages and losses: our estimators and what they may ask for."""
