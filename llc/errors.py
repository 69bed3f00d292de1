"""The errors whose messages are written for the user: they name the thing, what was found, what is accepted, what to do."""


class UserError(Exception):
    """Bad input. Entry points print the message, without a traceback, and exit with status 2."""


class LostProcesses(UserError):
    """Other processes of this run ended or no longer answer; the cause is theirs."""
