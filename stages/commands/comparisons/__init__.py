"""Commands that compare runs: variants over seeds, and two runs."""
