"""Switch a verl recipe to turn-level credit without editing it: read its command, and write a folder beside it."""
