"""Where the members of a tar are: its headers, read without their data.

The format: POSIX.1-2001, "pax Interchange Format" (which covers ustar), and the manual of GNU tar, "Basic Tar
Format", for long names and sparse files. Python's tarfile knows more, but takes four times as long for an
index, which matters for ImageNet's 1.28 million members.
"""

import numpy as np

from llc.data.sources.archive import Container, OpenFile, as_text
from llc.data.sources.base import SourceError, printable

BLOCK = 512
_READ_AHEAD = 4096  # bytes; small members, such as labels, need no reading of their own then
_CHECKED_AT_ONCE = 1024  # headers
_CHECKSUM = slice(148, 156)
_FILES = b"\0" + b"07"  # types of regular files: before POSIX, POSIX, contiguous
_WITHOUT_DATA = b"123456"  # links, devices, folders and pipes: their size says nothing
_MULTI_VOLUME = b"M"
_COMPRESSED = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"BZh": ("bzip2", "bunzip2"),
    b"\xfd7zXZ\0": ("xz", "unxz"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"),
}


class Tar:
    """A tar inside an open file: iterate over (name, offset, size) of its regular files, in order.

    name: bytes, as they are stored; offset: where the member's data begin in the file; size: bytes. start,
    end: the bytes of the file that are the tar. title: what messages call it. A hard link to an earlier
    member is that member under another name. Folders, symbolic links, devices and pipes are passed over.
    After iterating, `notes` are lines for the user.

    Raises SourceError while iterating, where it is compressed, cut off, damaged, or has sparse members or
    members that continue in another file.
    """

    def __init__(self, file, start=0, end=None, title=None):
        self._file, self.container = file, file.container
        self._start, self._end = start, file.container.size if end is None else end
        self.title = printable(file.container.path) if title is None else title
        self._block, self._block_start = b"", 0
        self._unchecked = []  # headers whose checksums are still to be compared
        self._follows_links = True
        self.notes = []

    @classmethod
    def open(cls, path):
        """The tar that is the whole file `path`. Raises SourceError."""
        return cls(OpenFile(Container.of(path)))

    def read(self, size, offset):
        """`size` bytes of the file from byte `offset` on."""
        at = offset - self._block_start
        if at < 0 or at + size > len(self._block):
            if size > _READ_AHEAD:
                return self._file.read(size, offset)
            self._block = self._file.read(min(_READ_AHEAD, self._end - offset), offset)
            self._block_start, at = offset, 0
        return self._block[at : at + size]

    def __iter__(self):
        at, end = self._start, self._end
        global_, pax, long_name, long_link = {}, {}, None, None
        num_links = 0
        while True:
            header = self.read(BLOCK, at) if at < end else b""
            if len(header) < BLOCK:
                self._check()
                if at == self._start:
                    raise (
                        self._damaged(header, at) if header else SourceError(f"{self.title} is an empty file")
                    )
                # A long name or an extended header belongs to a member that must follow.
                if header.strip(b"\0") or long_name is not None or long_link is not None or pax != global_:
                    raise self._cut_off(f"a header in it ends at byte {at + BLOCK - self._start:,}")
                self.notes.append(
                    f"{self.title} has no end mark, as if it were cut off between two files; compare its"
                    " size with the original's"
                )
                break
            kind = header[156]
            if not header[0] and not kind and not header.strip(b"\0"):
                break
            try:
                size = _number(header[124:136])
            except ValueError:
                self._check()
                raise self._damaged(header, at) from None
            self._unchecked.append((header, at))
            if len(self._unchecked) == _CHECKED_AT_ONCE:
                self._check()
            if "size" in pax and kind not in b"xgXLK":
                size = pax["size"]
            data = at + BLOCK
            if kind in _WITHOUT_DATA:
                size = 0
            if data + size > end:
                self._check()
                name = printable(as_text(self._name(header, pax, long_name)))
                raise self._cut_off(f"{name} in it ends at byte {data + size - self._start:,}")
            at = data + (size + BLOCK - 1) // BLOCK * BLOCK
            if kind in b"xX":
                pax = {**global_, **self._pax(self.read(size, data))}
                continue
            if kind in b"g":
                global_ = {**global_, **self._pax(self.read(size, data))}
                pax = dict(global_)
                continue
            if kind in b"L":
                long_name = self.read(size, data).partition(b"\0")[0]
                continue
            if kind in b"K":
                long_link = self.read(size, data).partition(b"\0")[0]
                continue
            if kind in b"SM" or any(key.startswith("GNU.sparse") for key in pax):
                self._check()
                name = printable(as_text(self._name(header, pax, long_name)))
                what = "continues from another volume" if kind in _MULTI_VOLUME else "is a sparse file"
                raise SourceError(
                    f"{self.title}: {name} {what}, which llc does not read; pack the images again, with"
                    " plain tar -cf"
                )
            if kind in _FILES:
                name = self._name(header, pax, long_name)
                if not name.endswith(b"/"):  # before POSIX, that was a folder
                    yield name, data, size
            elif kind in b"1" and self._follows_links:
                target = pax.get("linkpath", long_link) or _until_nul(header[157:257])
                place = self._place_of(target, data - BLOCK)
                if place is not None:
                    yield self._name(header, pax, long_name), *place
                else:
                    num_links += 1
            elif kind in b"2":
                num_links += 1
            pax, long_name, long_link = dict(global_), None, None
        self._check()
        if num_links:
            self.notes.append(
                f"{num_links:,} links in {self.title} to files outside it were ignored (symbolic links always"
                " are)"
            )
        if at < end - BLOCK and end - at > 1 << 20:
            self.notes.append(
                f"{end - at:,} bytes after the end mark of {self.title} were ignored; if several tars were"
                " joined, give them one by one"
            )

    @staticmethod
    def _name(header, pax, long_name):
        if "path" in pax:
            return pax["path"]
        if long_name is not None:
            return long_name
        name = _until_nul(header[:100])
        # GNU's own format, which has "ustar  " here, keeps other things in the place of the prefix.
        if header[345] and header[257:263] == b"ustar\0":
            return _until_nul(header[345:500]) + b"/" + name
        return name

    def _pax(self, data):
        """Extended header records, "LENGTH KEY=VALUE\n", of those keys that matter here."""
        records, at = {}, 0
        try:
            while at < len(data):
                space = data.index(b" ", at)
                length = int(data[at:space])
                key, equals, value = data[space + 1 : at + length - 1].partition(b"=")
                if not equals or length <= 0 or data[at + length - 1 : at + length] != b"\n":
                    raise ValueError
                key = key.decode("utf-8", "replace")
                if key in ("path", "linkpath") or key.startswith("GNU.sparse"):
                    records[key] = value
                elif key == "size":
                    records[key] = int(value)
                at += length
        except ValueError:
            self._check()
            raise SourceError(
                f"{self.title} is damaged: an extended header cannot be read; get a new copy"
            ) from None
        return records

    def _place_of(self, target, end):
        """(offset, size) of the last member called `target` before byte `end`, or None."""
        found, others = None, Tar(self._file, self._start, self._end, self.title)
        others._follows_links = False  # a link's target is a file that came before it
        for name, offset, size in others:
            if offset >= end:
                break
            if name == target:
                found = offset, size
        return found

    def _check(self):
        """Compares the checksums of the headers since the last check. Raises SourceError."""
        waiting, self._unchecked = self._unchecked, []
        if not waiting:
            return
        fields = np.frombuffer(b"".join(header for header, _ in waiting), np.uint8).reshape(-1, BLOCK).copy()
        fields[:, _CHECKSUM] = ord(" ")
        unsigned = fields.sum(axis=1, dtype=np.int64).tolist()
        signed = fields.view(np.int8).sum(axis=1, dtype=np.int64).tolist()  # some old tars have this one
        for (header, at), *sums in zip(waiting, unsigned, signed):
            try:
                right = _number(header[_CHECKSUM]) in sums
            except ValueError:
                right = False
            if not right:
                raise self._damaged(header, at)

    def _damaged(self, header, at):
        if at != self._start:
            return SourceError(
                f"{self.title} is damaged: there is no header at byte {at - self._start:,}, where one should"
                " be; get a new copy"
            )
        for magic, (what, command) in _COMPRESSED.items():
            if header.startswith(magic):
                return SourceError(
                    f"{self.title} is compressed with {what}, so its images cannot be read one by one; unpack"
                    f" it once, with {command} --keep, and give the .tar"
                )
        return SourceError(f"{self.title} is not a tar")

    def _cut_off(self, what):
        return SourceError(
            f"{self.title} is cut off: {what}, and the file at byte {self._end - self._start:,}; copy or"
            " download it again"
        )


def _until_nul(field):
    end = field.find(b"\0")
    return field if end < 0 else field[:end]


def _number(field):
    """A number of a header: octal digits, or, with the first bit set, binary. Raises ValueError."""
    if field[0] >= 0x80:
        value = int.from_bytes(field, "big") & ((1 << (8 * len(field) - 1)) - 1)
        if field[0] == 0xFF:  # negative
            raise ValueError
        return value
    digits = _until_nul(field).strip()
    if not digits:
        return 0
    value = int(digits, 8)
    if value < 0:
        raise ValueError
    return value
