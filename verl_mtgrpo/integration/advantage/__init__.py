"""Plug into verl's seam for advantages and losses: our estimators, and the fields that they may ask for."""
