"""The encoding of a file, from all of its bytes.

UTF-8 and UTF-16 show themselves. Of code pages, one fits as well as another: the one under which most of the bytes are
letters is proposed, with some of the texts to look at.
"""

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from include.dlt_pipelines.files.text import open_unpacked

_BLOCK = 1 << 20
_KEPT = 1 << 17  # bytes of lines that are not ASCII
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    *((mark, "utf-32") for mark in (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)),
    *((mark, "utf-16") for mark in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)),
)
_WESTERN = "äöüßÄÖÜéèêëàâçîïôûùñÑóíáúÉÈÀÇøåæØÅÆãõÃÕœìò"
_CENTRAL = "ąćęłńóśźżĄĆĘŁŃÓŚŹŻáčďéěíňřšťúůýžÁČĎÉĚÍŇŘŠŤÚŮÝŽőűŐŰäöüßÄÖÜăâîșțşţ"
_TURKISH = "ğışçöüİĞŞÇÖÜâîû"
_BALTIC = "āčēģīķļņšūžąęėįųõäöüĀČĒĢĪĶĻŅŠŪŽĄĘĖĮŲÕÄÖÜ"
# Letters frequent in the languages of a code page; by how often it is met, as the first of equal ones is taken.
_CODE_PAGES = {
    **dict.fromkeys(("cp1252", "iso8859_15"), _WESTERN),
    **dict.fromkeys(("cp1250", "iso8859_2"), _CENTRAL),
    **{"cp1254": _TURKISH, "cp1257": _BALTIC},
    **dict.fromkeys(("mac_roman", "cp850"), _WESTERN),
    **dict.fromkeys(("cp1251", "koi8_r", "cp866", "iso8859_5"), "".join(map(chr, range(0x410, 0x450)))),
    **{"cp1253": "".join(map(chr, range(0x384, 0x3CF))), "cp1255": "".join(map(chr, range(0x5D0, 0x5EB)))},
    **{"cp1256": "".join(map(chr, range(0x621, 0x64B))), "cp874": "".join(map(chr, range(0xE01, 0xE4F)))},
}
# Lead bytes of the frequent characters of a code page of several bytes.
_MULTIBYTE = {"euc_kr": (0xB0, 0xC8), "gb18030": (0xB0, 0xD7), "big5": (0xA4, 0xC6), "euc_jp": (0xB0, 0xCF)}
_MULTIBYTE |= {"shift_jis": (0x88, 0x97)}
_KANA = range(0x3040, 0x3100)
_SIGNS = "€£§°©®™«»·\u2013\u2014\u2018\u2019\u201c\u201d\u201e\u00a0"
# With few characters to judge by, what is met most.
_LIKELY = {"cp1252": 0.6, "cp1250": 0.2, "cp1251": 0.2}
_ODD = 20  # lines of UTF-8 for each one that is not


@dataclass(frozen=True)
class Encoding:
    """An encoding as Python names it, and what to check about it."""

    name: str
    note: str = ""


def detect_encoding(path: Path) -> Encoding:
    """Return the encoding of a file.

    Args:
        path: the file, which may be packed.

    Raises:
        SourceFileError: it cannot be read or unpacked.
    """
    blocks = _blocks(path)
    first = next(blocks, b"")
    for mark, name in _MARKS:
        if first.startswith(mark):
            return Encoding(name)
    if wide := _without_mark(first[:4096]):
        return Encoding(wide, f"{wide}, without a byte order mark")
    sound = odd = 0
    kept: list[bytes] = []
    size = 0
    for line in _beyond_ascii(first, blocks):
        try:
            line.decode()
            sound += 1
        except UnicodeDecodeError:
            odd += 1
            if size < _KEPT:
                kept.append(line)
                size += len(line)
    if not odd:
        return Encoding("utf-8")
    if sound > _ODD * odd:
        return Encoding("utf-8", f"{odd:,} of {sound + odd:,} lines beyond ASCII are not UTF-8")
    name = _code_page(kept)
    texts = dict.fromkeys(
        word for line in kept for word in re.findall(r"\w*[^\x00-\x7f]\w*", line.decode(name, "replace"))
    )
    return Encoding(name, f"{name}, as it is not UTF-8: is this right? {', '.join(list(texts)[:5])}")


def _blocks(path: Path) -> Iterator[bytes]:
    with open_unpacked(path) as file:
        while block := file.read(_BLOCK):
            yield block


def _without_mark(start: bytes) -> str:
    """Recognise UTF-16 by its zeros, which no other text has, and by its line ends."""
    high, low = start[1::2].count(0), start[0::2].count(0)
    if high + low < len(start) * 0.03:
        return ""
    name = "utf-16-le" if high > 3 * low else "utf-16-be" if low > 3 * high else ""
    ends = start.count(b"\n\0" if name == "utf-16-le" else b"\0\n")
    return name if name and ends and ends == start.count(b"\n") else ""


def _beyond_ascii(first: bytes, blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the lines that are not ASCII."""
    rest = b""
    block: bytes | None = first
    while block is not None:
        text = rest + block
        end = max(text.rfind(b"\n"), text.rfind(b"\r")) + 1
        if end:
            lines, rest = text[:end], text[end:]
            if not lines.isascii():
                yield from (line for line in re.split(rb"[\r\n]+", lines) if not line.isascii())
        else:
            rest = text
        block = next(blocks, None)
    if not rest.isascii():
        yield rest


def _code_page(lines: list[bytes]) -> str:
    text = b"\n".join(lines)
    scores = {name: _likeness(text, name) for name in (*_MULTIBYTE, *_CODE_PAGES)}
    return max(scores, key=lambda name: scores[name])


def _likeness(text: bytes, name: str) -> float:
    """Return how much a text looks like one of a code page, at most 1."""
    try:
        decoded = text.decode(name)
    except UnicodeDecodeError:
        return -9
    total = count = 0.0
    before, run = " ", 0
    for one in decoded:
        if one > "\x7f":
            count += 1
            run += 1
            total += _weight(one, before, run, name)
        else:
            # A sign within a word, or letters of two scripts, are those of another code page.
            odd = one.isalpha() and before > "\x7f" and before not in _SIGNS
            total -= odd and (not before.isalpha() or before > "\u0250")
            run = 0
        before = one
    return total / count + _LIKELY.get(name, 0) * 3 / (count + 3)


def _weight(one: str, before: str, run: int, name: str) -> float:
    foreign = name in _MULTIBYTE or _CODE_PAGES[name][0] > "\u0250"
    if foreign and before.isascii() and before.isalpha():
        return 0.5 if one in _SIGNS else -1
    if name in _MULTIBYTE:
        least, most = _MULTIBYTE[name]
        return 1 if ord(one) in _KANA or least <= one.encode(name)[0] <= most else -0.5
    if not one.isalpha():
        return 0.6 if one in _SIGNS else -1 if before.isalpha() else 0
    if one.isupper() and before.islower():
        return -1
    western = _CODE_PAGES[name] == _WESTERN
    if not foreign and run > 2 - western:
        return 0.3 if run == 2 else -0.5  # accented letters in a row are rare
    return 1 if one in _CODE_PAGES[name] else 0.2
