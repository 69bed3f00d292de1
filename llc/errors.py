"""The error whose message is written for the user: it names the thing, what was found, what is accepted, what to do."""


class UserError(Exception):
    """Bad input. Entry points print the message, without a traceback, and exit with status 2."""
