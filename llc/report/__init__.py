"""One HTML page that shows a run, or several beside each other: `python -m llc.report --help`."""
