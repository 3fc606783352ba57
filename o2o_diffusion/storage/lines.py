"""A file of lines that is only appended to, and holds whole lines even if the disk is full for a while."""

import os
from pathlib import Path


class Lines:
    """Appends lines to the file `path`; lines that can't be written now are kept and written with a later one."""

    def __init__(self, path: Path):
        self.path, self.waiting = path, b""
        self.size = path.stat().st_size if path.exists() else 0

    def append(self, line: str) -> OSError | None:
        """Write `line` and those that wait; returns the error if that fails."""
        self.waiting += line.encode() + b"\n"
        try:
            self._write()
        except OSError as error:
            return error
        return None

    def flush(self) -> int:
        """Write everything to the disk; returns the size in bytes, or raises OSError."""
        self._write(sync=True)
        return self.size

    def cut(self, size: int) -> bool:
        """Forget what follows the first `size` bytes, at the next access; returns False if the file is shorter."""
        is_whole, self.size = self.size >= size, min(self.size, size)
        return is_whole

    def _write(self, *, sync: bool = False) -> None:
        with self.path.open("ab", buffering=0) as file:
            if file.tell() > self.size:
                file.truncate(self.size)  # cut lines, or a line written in part
            if (written := file.write(self.waiting)) != len(self.waiting):
                raise OSError(f"{self.path}: {written} of {len(self.waiting)} bytes written")
            if sync:
                os.fsync(file.fileno())
        self.size, self.waiting = self.size + len(self.waiting), b""
