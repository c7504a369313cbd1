"""What was learned about files, kept in one JSON file: of a file that has changed since, nothing is believed."""

import json
import logging
import os
import secrets
import threading
import time
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

VERSION = 1
"""Of the file and of the facts in it: to be raised when what is kept of a file changes."""
SAVE_SECONDS = 60.0
"""As often a long reading is written down, so that one that is killed does not begin anew."""


class FileCache:
    """Facts by name, each with the stamp of the file that it was learned from.

    Args:
        path: JSON file, read if it is there; None keeps the facts in memory alone.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self.path = None if path is None else Path(path)
        self._facts: dict[str, list[Any]] = {}
        self._changed = False
        self._saved = time.monotonic()
        self._lock = threading.Lock()
        if self.path is not None and self.path.exists():
            self._facts = _read(self.path)

    def get(self, name: str, stamp: str) -> Any:
        """What is known about `name`; None if that is nothing, or was learned from another stamp."""
        known = self._facts.get(name)
        return known[1] if known is not None and known[0] == stamp else None

    def put(self, name: str, stamp: str, fact: Any) -> None:
        """Keeps a fact (JSON values) and, once a minute, writes the file; from any thread."""
        with self._lock:
            self._facts[name] = [stamp, fact]
            self._changed = True
            if time.monotonic() - self._saved > SAVE_SECONDS:
                self._write()

    def save(self) -> None:
        """Writes the file, under another name first, if there is anything new."""
        with self._lock:
            self._write()

    def _write(self) -> None:
        if self.path is None or not self._changed:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
        try:
            temporary.write_text(json.dumps({"version": VERSION, "facts": self._facts}), encoding="utf-8")
            os.replace(temporary, self.path)
        finally:
            temporary.unlink(missing_ok=True)
        self._changed, self._saved = False, time.monotonic()


def _read(path: Path) -> dict[str, list[Any]]:
    """The facts of a file; none, with a warning, if it is damaged or of another version."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["version"] == VERSION and all(len(fact) == 2 for fact in content["facts"].values()):
            return content["facts"]
        reason = f"version {content['version']}, expected {VERSION}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
    logger.warning("%s is no cache of this version (%s); what it held is learned anew", path, reason)
    return {}
