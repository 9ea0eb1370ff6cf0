"""Reading and writing of files, and the error for mistakes of the user.

All files are written by `whole_file`: under a temporary name beside the target, flushed to the disk, then renamed. So a
killed run or a full disk never leaves half a file under the final name.
All texts are read by `read_text`, `text_lines` or `read_csv`: UTF-8, with or without the byte order mark and the
"\\r\\n" line ends that Windows editors write.
"""

import csv
import gzip
import hashlib
import json
import os
import tempfile
import zlib
from contextlib import contextmanager
from pathlib import Path


class UserError(ValueError):
    """A mistake that the user can correct: one line with the file, what is wrong, and the remedy. Exit code 2."""


def read_text(path):
    """The text of a file, with "\\n" line ends. Raises OSError, or UserError if the text is not UTF-8."""
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _not_utf8(path, error) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def text_lines(path):
    """Yields (line number from 1, line without its end) of a text file that may not fit in memory. Raises like
    `read_text`.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                yield number, line.rstrip("\n")
    except UnicodeDecodeError as error:
        raise _not_utf8(path, error) from None


def read_json(path, remedy="download it again"):
    """The value in a JSON file. Raises OSError, or UserError, which ends with `remedy`, if the file is not JSON."""
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({' '.join(str(error).split())}); {remedy}") from None


def read_json_object(path, remedy="download it again"):
    """The object (dict) in a JSON file. Raises UserError for every fault, also if there is no such file."""
    try:
        value = read_json(path, remedy)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; give a folder in Hugging Face's layout") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); {remedy}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds a {type(value).__name__}, not a JSON object; {remedy}")
    return value


def refuse_pointer(path):
    """Raises UserError if the file is only a Git LFS pointer, which a git clone without git-lfs leaves in its place."""
    try:
        with open(path, "rb") as file:
            start = file.read(23)
    except OSError:                    # a folder, or no permission: the caller has an error message for this
        return
    if start == b"version https://git-lfs":
        raise UserError(f"{path}: is a Git LFS pointer, not the file; run git lfs pull there, or download the file")


def read_csv(path, *columns, optional=(), remedy="download it again"):
    """Yields (line number, value of each of `columns`, value of each of `optional`) per row of a .csv or .csv.gz.

    The value of an optional column that the table lacks is None. Raises UserError, which ends with `remedy`.
    """
    opener = gzip.open if str(path).endswith(".gz") else open
    try:
        with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file)
            header = [name.strip() for name in next(rows, [])]
            missing = [column for column in columns if column not in header]
            if missing:
                raise UserError(f"{path}: no column {', '.join(missing)}; it has {', '.join(header)[:300]}; {remedy}")
            repeated = [column for column in (*columns, *optional) if header.count(column) > 1]
            if repeated:
                raise UserError(f"{path}: more than one column {', '.join(repeated)}; {remedy}")
            positions = [header.index(column) if column in header else None for column in (*columns, *optional)]
            needed = 1 + max(position for position in positions if position is not None)

            for row in rows:
                if row and len(row) < needed:
                    raise UserError(f"{path}, line {rows.line_num}: only {len(row)} columns, fewer than in the header; "
                                    f"{remedy}")
                if row:
                    yield rows.line_num, *(None if position is None else row[position] for position in positions)
    except UnicodeDecodeError as error:
        raise _not_utf8(path, error) from None
    except (EOFError, OSError, zlib.error, csv.Error) as error:
        raise UserError(f"{path}: cannot be read ({error}); {remedy}") from None


def _not_utf8(path, error):
    return UserError(f"{path}: not UTF-8 text ({error.reason}); save it as UTF-8, or download it again")


@contextmanager
def whole_file(path, mode="w"):
    """Yields an open temporary file, which is renamed to `path` when the block ends without an error.

    Text is UTF-8 with "\\n" line ends on every system. Raises OSError (full disk, no permission); `path` is then
    unchanged.
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


def writable_folder(path, option):
    """Raises UserError, which names `option`, if the folder `path` can't be created or written to; creates nothing."""
    path = Path(path)
    try:
        nearest = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise UserError(f"{path}: can't be written ({error.strerror}); give another folder with {option}") from None


def file_digest(path):
    """The first 16 hexadecimal digits of a file's SHA-256. Raises OSError."""
    sha = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            sha.update(block)
    return sha.hexdigest()[:16]
