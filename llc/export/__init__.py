"""Trained models in the forms that other programs load: python -m llc.export."""
