"""python -m llc.doctor: what is wrong with an installation or a machine, and what to do about it."""
