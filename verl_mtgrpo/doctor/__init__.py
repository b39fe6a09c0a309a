"""What `mtgrpo doctor` and the start of a training run look at: one list of checks for both."""
