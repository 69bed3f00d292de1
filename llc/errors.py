"""The error for bad input, and the rule that says when to raise it.

UserError: something that a user gives or owns is wrong: a file, a flag, a data set, a configuration. The
message names the thing, what was found, what is accepted, and what to do about it.

ValueError: a function of the library got a wrong argument, such as an array of the wrong shape. That is a
mistake in the calling code, so it is raised as numpy raises it. Where such an argument came from a user's
file or flag, the code that read it turns the ValueError into a UserError that names the file or the flag.
"""


class UserError(Exception):
    """Bad input. Commands print the message, without a traceback, and exit with status 2."""
