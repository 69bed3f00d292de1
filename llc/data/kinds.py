"""What a file is that cannot be read as an image, by its first bytes: text for messages.

Sources: the formats' own documentation, and the list of signatures of file(1).
"""

import struct

# First bytes -> what the file is. All of it follows "is ".
_BEGINNINGS = (
    (b"version https://git-lfs", "a Git LFS pointer, not the image itself (git lfs pull fetches it)"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL image, which is not supported"),
    (b"\xff\x0a", "a JPEG XL image, which is not supported"),
    (b"\0\x05\x16\x07", "an AppleDouble file, in which macOS keeps notes about another file"),
    (b"\0\x05\x16\0", "an AppleSingle file of macOS"),
    (b"\x1f\x8b", "a gzip archive, not an image; unpack it first"),
    (b"PK\x03\x04", "a zip archive, or a document that is one, not an image"),
    (b"PK\x05\x06", "an empty zip archive, not an image"),
    (b"BZh", "a bzip2 archive, not an image; unpack it first"),
    (b"\xfd7zXZ\0", "an xz archive, not an image; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive, not an image; unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive, not an image; unpack it first"),
    (b"Rar!\x1a\x07", "a RAR archive, not an image; unpack it first"),
    (b"%PDF-", "a PDF document, which is not supported"),
    (b"%!PS", "a PostScript document, which is not supported"),
    (b"\xc5\xd0\xd3\xc6", "a PostScript document, which is not supported"),
    (b"8BPS", "a Photoshop document, which is not supported"),
    (b"gimp xcf", "a GIMP document, which is not supported"),
    (b"\x76\x2f\x31\x01", "an OpenEXR image, which is not supported"),
    (b"#?RADIANCE", "a Radiance HDR image, which is not supported"),
    (b"#?RGBE", "a Radiance HDR image, which is not supported"),
    (b"qoif", "a QOI image, which is not supported"),
    (b"SIMPLE  =", "a FITS image, which is not supported"),
    (b"DDS ", "a DDS texture, which is not supported"),
    (b"icns", "an icon file of macOS, which is not supported"),
    (b"BPG\xfb", "a BPG image, which is not supported"),
    (b"FLIF", "a FLIF image, which is not supported"),
    (b"AT&TFORM", "a DjVu document, which is not supported"),
    (b"Pf\n", "a PFM image, which is not supported"),
    (b"PF\n", "a PFM image, which is not supported"),
    (b"II\xbc\x01", "a JPEG XR image, which is not supported"),
    (b"FUJIFILMCCD-RAW", "a camera's raw file, which is not supported"),
    (b"IIRO", "a camera's raw file, which is not supported"),
    (b"IIU\0", "a camera's raw file, which is not supported"),
    (b"\x1aE\xdf\xa3", "a video (Matroska or WebM), not an image"),
    (b"\0\0\x01\xba", "a video (MPEG), not an image"),
    (b"\0\0\x01\xb3", "a video (MPEG), not an image"),
    (b"FLV\x01", "a video (Flash), not an image"),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "a video (ASF), not an image"),
    (b"OggS", "an Ogg file (sound or video), not an image"),
    (b"ID3", "a sound file (MP3), not an image"),
    (b"fLaC", "a sound file (FLAC), not an image"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, not an image"),
    (b"\x93NUMPY", "a numpy array, not an image file"),
    (b"PAR1", "a Parquet file, not an image"),
    (b"SQLite format 3\0", "an SQLite database, not an image"),
    (b"\x7fELF", "a program, not an image"),
    (b"MZ", "a program of Windows, not an image"),
)
_BRANDS = (  # of ISO's media files, the first that is named
    ({b"avif", b"avis"}, "an AVIF image, which this installation of Pillow cannot read"),
    (
        {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"},
        "a HEIC image, which is not supported; convert it, for instance to JPEG",
    ),
    ({b"crx "}, "a camera's raw file (CR3), which is not supported"),
)
_FORMATS = (  # of images that are supported: then this file is broken
    (b"\xff\xd8", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF8", "GIF"),
    (b"BM", "BMP"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\0\0\x01\0", "ICO"),
)


def describe(data):
    """What the file `data` is, and why it is not read, to follow the file's name: "is a ..."."""
    head = bytes(data[:4096])
    for beginning, kind in _BEGINNINGS:
        if head.startswith(beginning):
            return "is " + kind
    if head[4:8] == b"ftyp":
        return "is " + _media(head)
    if head.startswith(b"RIFF") and head[8:12] != b"WEBP":
        return {
            b"AVI ": "is a video (AVI), not an image",
            b"WAVE": "is a sound file (WAV), not an image",
        }.get(head[8:12], "is a RIFF file of an unknown kind, not an image")
    if head[257:262] == b"ustar":
        return "is a tar archive, not an image"
    if head[128:132] == b"DICM":
        return "is a DICOM image, which is not supported"
    if not head.strip(b"\0"):
        return "holds only zeros, as a file does that was never written to its end"
    text = _text(head)
    if text is not None:
        return text
    for beginning, name in _FORMATS:
        if head.startswith(beginning):
            return f"is a {name} whose header is broken or cut off"
    if head.startswith(b"RIFF"):
        return "is a WebP whose header is broken or cut off"
    return "is not an image in a known format, or its header is broken"


def _media(head):
    length = struct.unpack_from(">I", head)[0]
    brands = {head[i : i + 4] for i in range(8, min(max(length, 12), len(head)), 4) if i != 12}
    first = head[8:12]
    for names, kind in _BRANDS:
        if first in names and not (first in (b"mif1", b"msf1") and brands & _BRANDS[0][0]):
            return kind
    for names, kind in _BRANDS:
        if brands & names:
            return kind
    return "a video (MP4 or QuickTime), not an image"


def _text(head):
    """What kind of text it is; None where it is none."""
    begins = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if begins.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "is an HTML page, not an image; the download went wrong"
    if begins.startswith(b"<") and b"<svg" in begins:
        return "is an SVG drawing, which is not supported"
    if begins.startswith(b"<"):
        if b"<html" in begins:
            return "is an HTML page, not an image; the download went wrong"
        return "is an XML document, not an image"
    try:
        text = head.decode("utf-8", errors="strict" if len(head) < 4096 else "ignore")
    except UnicodeDecodeError:
        return None
    if begins and all(letter.isprintable() or letter in "\t\r\n\f" for letter in text):
        if begins.startswith((b"{", b"[")):
            return "is JSON or other text, not an image"
        return "is a text file, not an image"
    return None


def describe_jpeg(data):
    """Which kind of JPEG that nothing here reads `data` is, to follow its name; None where it is another."""
    frame = _frame(data)
    if frame is None:
        return None
    marker, bits, height, width, _ = frame
    if marker in (0xC3, 0xC7, 0xCB, 0xCF):
        return f"is a lossless JPEG ({bits} bits), which is not supported"
    if marker in (0xC5, 0xC6, 0xCD, 0xCE):
        return "is a hierarchical JPEG, which is not supported"
    if bits != 8:
        return f"is a JPEG of {bits} bits per sample, which is not supported"
    if not height:
        return "is a JPEG that gives its height only behind its rows (DNL), which is not supported"
    if not width:
        return "is a JPEG of width 0"
    if marker in (0xC9, 0xCA):
        return "is a JPEG with arithmetic coding that is broken, or that cannot be decoded here"
    return None


def _frame(data):
    """(marker, bits, height, width, bands) of the first frame of a JPEG; None without one."""
    data = memoryview(data).cast("B")
    position = 2
    while position + 4 <= len(data):
        if data[position] != 0xFF:
            position += 1
            continue
        marker = data[position + 1]
        if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD8:
            position += 1
            continue
        length = struct.unpack_from(">H", data, position + 2)[0]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return (
                (marker, *struct.unpack_from(">BHHB", data, position + 4))
                if position + 10 <= len(data)
                else None
            )
        if marker in (0xD9, 0xDA):
            return None
        position += 2 + length
    return None
