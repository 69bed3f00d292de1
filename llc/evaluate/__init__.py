"""What a model's codes are good for, measured: python -m llc.evaluate."""
