"""Files that are whole or not there, their digests, and mistakes that are the user's.

Everything the project writes goes through `whole_file`: to a temporary name beside the target, flushed to the disk,
then renamed, so that a killed run or a full disk never leaves half a file under a name somebody will read.
"""

import hashlib
import os
from contextlib import contextmanager
from pathlib import Path


class UserError(ValueError):
    """A mistake the user can mend. The message is one line: the file, what is wrong, the remedy.

    Scripts exit with 2.
    """


@contextmanager
def whole_file(path, mode="w"):
    """Yields an open file that takes the name `path` only when the block ends without an error.

    Text is UTF-8 with "\\n" line ends on every system. Raises OSError (a full disk, no permission)
    with nothing changed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
    try:
        with open(temporary, mode, **text) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def file_digest(path):
    """SHA-256 of a file, the first 16 digits."""
    sha = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            sha.update(block)
    return sha.hexdigest()[:16]
