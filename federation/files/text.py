"""Encoding, delimiter and header of a CSV file, found without guessing what cannot be known.

UTF-8 (with or without BOM), UTF-16 with BOM, and GB18030 where the text is Chinese are taken by themselves. Any other
encoding has to be named: read in the wrong one, every name becomes another name.
"""

import codecs
import io
import re
from pathlib import Path
from typing import NamedTuple, TextIO

from . import UnreadableFile

_BLOCK = 1 << 20
_BOMS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
_SAMPLE = 200_000  # bytes of lines that are not ASCII
_CHINESE = frozenset({"gb2312", "gbk", "gb18030"})
_MULTIBYTE = re.compile(rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}")
_HIGH = re.compile(rb"[\x80-\xff]")
_SEPARATOR = re.compile(r"sep=(.)", re.IGNORECASE)
_DELIMITERS = ",;\t|"
_MARKS = 8  # byte-order marks at the most


class Dialect(NamedTuple):
    """How a CSV file is written. `skipped` lines precede the header's."""

    encoding: str
    delimiter: str
    skipped: int


def encoding_of(path: Path, named: str = "") -> str:
    """Python's name of the file's encoding; raises `UnreadableFile` where it cannot be told, with the line."""
    try:
        with path.open("rb") as file:
            head = file.read(4)
            if named:
                return _named(path, named)
            for bom, name in _BOMS:
                if head.startswith(bom):
                    _decode_all(path, name)
                    return name
            trouble = _decode_all(path, "utf-8", quietly=True)
    except OSError as error:
        raise UnreadableFile(path, str(error.strerror)) from error
    return "utf-8" if trouble is None else _not_utf8(path, trouble)


def _named(path: Path, name: str) -> str:
    try:
        found = codecs.lookup(name).name
    except LookupError:
        raise UnreadableFile(path, f"{name!r} is no encoding that is known here") from None
    _decode_all(path, found)
    return found


def _decode_all(path: Path, name: str, quietly: bool = False) -> int | None:
    """Decode the whole file; the line that does not decode, or None. Raises instead unless `quietly`."""
    decoder = codecs.getincrementaldecoder(name)()
    line = 1
    with path.open("rb") as file:
        while True:
            block = file.read(_BLOCK)
            try:
                line += decoder.decode(block, final=not block).count("\n")
            except UnicodeDecodeError as error:
                line += bytes(error.object[: error.start]).count(b"\n")
                if quietly:
                    return line
                raise UnreadableFile(path, f"line {line} is not {name}") from None
            if not block:
                return None


def decoded(data: bytes, named: str = "", source: Path = Path("-")) -> str:
    """The text of bytes that were given without a file; raises `UnreadableFile` as `encoding_of` does."""
    try:
        return data.decode(named or "utf-8-sig")
    except LookupError:
        raise UnreadableFile(source, f"{named!r} is no encoding that is known here") from None
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        if named:
            raise UnreadableFile(source, f"line {line} is not {named}") from None
    encoding = _chinese(source, line, b"".join(each for each in data.splitlines(True) if not each.isascii()))
    return data.decode(encoding)


def _not_utf8(path: Path, line: int) -> str:
    """GB18030, if that is what the file is written in."""
    sample = b""
    with path.open("rb") as file:
        for each in file:
            if not each.isascii():
                sample += each
                if len(sample) > _SAMPLE:
                    break
    encoding = _chinese(path, line, sample)
    if _decode_all(path, encoding, quietly=True) is None:
        return encoding
    raise UnreadableFile(
        path, "neither UTF-8 nor GB18030; save it as UTF-8, or name its encoding with --encoding"
    )


def _chinese(path: Path, line: int, sample: bytes) -> str:
    """GB18030 where lines that are not UTF-8 look like it; raises `UnreadableFile`."""
    of_utf8 = sum(len(match) for match in _MULTIBYTE.findall(sample))
    mostly_utf8 = 2 * of_utf8 > len(_HIGH.findall(sample))
    import chardet  # takes longer to import than most commands to run

    likely = str(chardet.detect(sample)["encoding"] or "")
    if likely.lower() in _CHINESE and not mostly_utf8:
        return "gb18030"
    if mostly_utf8:
        raise UnreadableFile(
            path, f"line {line} is not UTF-8, though most of the file is; mend it, nothing was read"
        )
    hint = f" (it looks like {likely})" if likely else ""
    raise UnreadableFile(
        path,
        f"line {line}: neither UTF-8 nor GB18030{hint}; save it as UTF-8, or name its encoding with --encoding",
    )


def dialect_of(path: Path, named: str = "") -> Dialect:
    """Encoding and delimiter, and how many lines precede the header: blank ones, and Excel's `sep=;`.

    Raises `UnreadableFile`, also for an empty file.
    """
    encoding = encoding_of(path, named)
    delimiter = ""
    with opened(path, Dialect(encoding, ",", 0)) as file:
        skipped = 0
        while line := file.readline(_BLOCK):
            text = line.strip("\r\n")
            said = _SEPARATOR.fullmatch(text.strip())
            if said and not delimiter:
                delimiter = said[1]
            elif text.strip(_DELIMITERS + " \u00a0"):
                return Dialect(encoding, delimiter or max(_DELIMITERS, key=text.count), skipped)
            skipped += 1
    raise UnreadableFile(path, "the file is empty")


def opened(path: Path, dialect: Dialect) -> TextIO:
    """The file as text, from the header on; however many byte-order marks programs have put before it."""
    file = path.open("rb")
    marks = 0
    if dialect.encoding == "utf-8":
        head = file.read(3 * _MARKS)
        while head.startswith(codecs.BOM_UTF8, 3 * marks):
            marks += 1
        file.seek(3 * marks)
    text = io.TextIOWrapper(file, encoding=dialect.encoding, newline="")
    for _ in range(dialect.skipped):
        text.readline()
    return text
