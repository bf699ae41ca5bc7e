"""The one exception that is meant for the person at the keyboard."""


class UserError(ValueError):
    """Something a user can mend. The message is one line: what is wrong, and how to mend it.

    Scripts print it and leave with exit code 2 (`common.cli.run_script`); importers catch it as a ValueError.
    """
