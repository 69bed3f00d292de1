"""Throughput of loader, writer, epoch and decoders: python -m llc.benchmark NAME."""
