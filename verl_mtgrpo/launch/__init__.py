"""Start verl's trainer as a child process, follow it, and say why it failed. Used by commands, recipes and examples."""
