"""Try a command line of verl on a CPU: a tiny policy that calls the user's own tools, and two steps with it."""
