"""verl's seam for rollouts: agent loops, formats, tools and the workers that run them."""
