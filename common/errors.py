"""The one exception that is meant for the person at the keyboard, and the one that can come from anywhere."""


class UserError(ValueError):
    """Something a user can mend. The message is one line: what is wrong, and how to mend it.

    Scripts print it and leave with exit code 2 (`common.cli.run_script`); importers catch it as a ValueError.
    """


NO_MEMORY = ("can't allocate memory", "cannot allocate memory", "memory allocation failed", "out of memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an exception means that memory ran out: PyTorch, HDF5 and the system have their own for that."""
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in NO_MEMORY)
