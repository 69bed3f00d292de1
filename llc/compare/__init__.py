"""Ways to learn codes, compared on the same data for the same epochs: `python -m llc.compare --help`."""
