"""A small server for an index: `python -m llc.serve INDEX`.

The modules below import the packages of the extra `serve`, which only __main__.py checks for.
"""
