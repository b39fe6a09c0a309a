"""Check a run before it trains: `mtgrpo doctor` and the start of every run, with one list of checks."""
