"""Words around numbers."""


def counted(number: int, one: str, several: str = "") -> str:
    """A number of things, such as "1 class" and "1,000 classes". several: their name; default: one + s."""
    return f"{number:,} {one if number == 1 else several or f'{one}s'}"
