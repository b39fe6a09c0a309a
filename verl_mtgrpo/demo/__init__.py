"""Everything that exists for the laptop demo: a small world, a tiny policy, its warm-up, runs and their comparison."""
