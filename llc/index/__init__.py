"""An index of packed codes with ids: exact neighbours in microseconds, kept in a folder (llc.Index)."""
