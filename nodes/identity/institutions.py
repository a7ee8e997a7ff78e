"""The network's directories of institutions on this node's disk, by hash; the member list says which one is in force."""

import functools
import logging
from pathlib import Path
from typing import NamedTuple

from protocols.errors import DecodeError
from protocols.identifiers import Directory, form
from protocols.identifiers import institutions as directories

from ..errors import ConfigError, NotFound
from ..files import write_atomic
from .members import MemberBook, MemberList

_log = logging.getLogger("lianfang.institutions")


@functools.lru_cache(maxsize=4)
def load(path: Path, expected: bytes) -> Directory:
    """The directory in a file whose hash is known; kept in memory. Raises `DecodeError` where the file is another."""
    data = path.read_bytes()
    if directories.hash_of(data) != expected:
        raise DecodeError(f"{path} is not the directory with the hash {expected.hex()[:12]}")
    return Directory.decode(data)


class DirectoryFile(NamedTuple):
    """A directory as it is handed to worker processes, which read the file themselves; `hash` empty for none."""

    path: Path | None = None
    hash: bytes = b""

    def load(self) -> Directory | None:
        """None where the network has no directory. Raises `DecodeError` where the file is another."""
        return load(self.path, self.hash) if self.path is not None else None

    @property
    def form(self) -> bytes:
        """The form of identifiers that are normalised with it."""
        return form(self.hash)


NONE = DirectoryFile()


class Institutions:
    """One per node. A directory that the member list names and that is not here yet changes nothing: the one before stays in force."""

    def __init__(self, book: MemberBook, certs: Path) -> None:
        """`certs` is the node's folder of that name; a file `institutions.tsv` in it is taken up."""
        self._book, self._dropped, self._folder = book, certs / "institutions.tsv", certs / "institutions"
        self._in_force = self._folder / "in-force"  # holds the hash, in hex
        self._seen: tuple[MemberList, DirectoryFile] | None = None

    def _file(self, digest: bytes) -> DirectoryFile:
        return DirectoryFile(self._folder / f"{digest.hex()}.tsv", digest) if digest else NONE

    def _here(self, digest: bytes) -> bool:
        path = self._file(digest).path
        return path is None or path.exists()

    @property
    def current(self) -> DirectoryFile:
        """The directory in force."""
        members = self._book.current
        if self._seen is not None and self._seen[0] is members:
            return self._seen[1]
        wanted = members.institutions
        if not self._here(wanted):
            self._take_up(wanted)
        if not self._here(wanted):
            return self._last()
        if wanted != self._last().hash:
            self._folder.mkdir(exist_ok=True)
            write_atomic(self._in_force, wanted.hex().encode())
            _log.info("the directory of institutions %s is in force", wanted.hex()[:12] or "(none)")
        self._seen = members, self._file(wanted)
        return self._seen[1]

    def _take_up(self, wanted: bytes) -> None:
        try:
            self.put(self._dropped.read_bytes(), wanted)
        except OSError:
            pass  # none was put there: a member has it
        except ConfigError as error:
            _log.warning("%s: %s", self._dropped, error)

    def _last(self) -> DirectoryFile:
        try:
            return self._file(bytes.fromhex(self._in_force.read_text("ascii")))
        except OSError:
            return NONE

    @property
    def missing(self) -> bytes:
        """Hash of the directory that the member list names, where it is not here yet; else empty."""
        wanted = self._book.current.institutions
        self.current  # noqa: B018  # takes up a file that was put there
        return b"" if self._here(wanted) else wanted

    def put(self, data: bytes, digest: bytes) -> None:
        """Keep a directory. Raises `ConfigError` where it is not the one with this hash, or malformed."""
        if directories.hash_of(data) != digest:
            raise ConfigError("not the directory of institutions that the member list names")
        try:
            Directory.decode(data)
        except DecodeError as error:
            raise ConfigError(str(error)) from error
        self._folder.mkdir(exist_ok=True)
        write_atomic(self._folder / f"{digest.hex()}.tsv", data)

    def read(self, digest: bytes) -> bytes:
        """A directory's file; raises `NotFound` for one that is not here."""
        path = self._file(digest).path
        if path is None or len(digest) != directories.HASH_BYTES or not path.exists():
            raise NotFound("this node has no such directory of institutions")
        return path.read_bytes()

    def of(self, wanted: bytes) -> DirectoryFile | None:
        """The directory behind a form of identifiers, where this node has it; None for a form that it cannot write."""
        if wanted == self.current.form:
            return self.current
        known = (
            [bytes.fromhex(each.stem) for each in self._folder.glob("*.tsv")] if self._folder.exists() else []
        )
        return next((self._file(digest) for digest in (b"", *known) if form(digest) == wanted), None)
