"""Throughput of loader, writer, epoch and Hamming search: python -m llc.benchmark NAME."""
