"""The report of a finished run: tables for the terminal, and one self-contained page."""
