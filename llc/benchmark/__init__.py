"""Throughput of loader, writer, epoch and decoders, and ways to learn codes compared: python -m llc.benchmark NAME."""
