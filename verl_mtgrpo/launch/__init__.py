"""Start verl's trainer as a child process, follow it, say why it failed: what commands, recipes and examples share."""
