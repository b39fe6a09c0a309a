"""Numbers that say where credit went, and guards that look at them."""
