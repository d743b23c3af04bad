"""Images of all types as 8-bit RGB: each with the value that its file means."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from utils import folder2lmdb
from utils.data import load_dataset
from utils.decoding import UnreadableImage, decode

GREY = np.array([[0, 1, 100], [128, 254, 255]], np.uint8)
COLOURS = np.arange(18, dtype=np.uint8).reshape(2, 3, 3) * 14


def written(pixels, form: str, mode: str | None = None, **options) -> io.BytesIO:
    """A file of these pixels, as Pillow writes it."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    file = io.BytesIO()
    (image if mode is None else image.convert(mode)).save(file, form, **options)
    return file


def tiff(values: np.ndarray, **tags) -> io.BytesIO:
    """A grey TIFF of one strip with these values; the types that Pillow cannot write, too."""
    kinds = {"u": 1, "i": 2, "f": 3}
    entries = {
        256: tags.get("width", values.shape[1]), 257: values.shape[0],
        258: tags.get("bits", 8 * values.itemsize), 259: 1,
        262: tags.get("photometric", 1), 273: 8 + 2 + 9 * 12 + 4, 278: values.shape[0],
        279: values.nbytes, 339: kinds[values.dtype.kind],
    }  # fmt: skip
    directory = struct.pack("<H", len(entries))
    directory += b"".join(struct.pack("<HHII", key, 4, 1, v) for key, v in entries.items())
    content = struct.pack("<2sHI", b"II", 42, 8) + directory + bytes(4) + values.tobytes()
    return io.BytesIO(content)


def pgm(values: np.ndarray, most: int) -> io.BytesIO:
    head = f"P5 {values.shape[1]} {values.shape[0]} {most}\n".encode()
    return io.BytesIO(head + values.astype(">u2").tobytes())


def png_of_16_bits(values: np.ndarray, colour: int, transparent: int | None = None) -> io.BytesIO:
    """A PNG of 16 bits of a colour type: 0 grey, 2 RGB, 4 grey with alpha, 6 RGB with alpha."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    parts = chunk(b"IHDR", struct.pack(">IIBBBBB", *values.shape[1::-1], 16, colour, 0, 0, 0))
    parts += chunk(b"tRNS", struct.pack(">H", transparent)) if transparent is not None else b""
    parts += chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + parts)


def pixels(file: io.BytesIO) -> np.ndarray:
    image = decode(file)
    assert image.mode == "RGB"
    return np.asarray(image)


def is_grey(file: io.BytesIO, expected: np.ndarray, tolerance: int = 0) -> bool:
    found = pixels(file).astype(int)
    return bool((np.abs(found - expected[..., None]) <= tolerance).all())


WIDE = GREY.astype(np.int64) * 257  # the same shares of 65535

GREYS = {
    "PNG, 16 bits": lambda: written(WIDE.astype(np.uint16), "PNG"),
    "TIFF, 16 bits": lambda: written(WIDE.astype(np.uint16), "TIFF"),
    "TIFF, 16 bits, big-endian": lambda: written(
        Image.fromarray(WIDE.astype(np.uint16)), "TIFF", big_endian=True
    ),
    "TIFF, 16 bits, signed": lambda: tiff((WIDE // 2).astype(np.int16)),
    "TIFF, 16 bits, white is 0": lambda: tiff((65535 - WIDE).astype(np.uint16), photometric=0),
    "TIFF, 32 bits": lambda: tiff((GREY * np.int64(16843009)).astype(np.uint32)),
    "TIFF, 32 bits, signed": lambda: tiff((GREY * np.int64(16843009) // 2).astype(np.int32)),
    "TIFF, 16 bits in 32": lambda: written(WIDE.astype(np.int32), "TIFF"),
    "TIFF, 8 bits in 32": lambda: written(GREY.astype(np.int32), "TIFF"),
    "TIFF, floats": lambda: written((GREY / 255).astype(np.float32), "TIFF"),
    "TIFF, floats, white is 0": lambda: tiff((1 - GREY / 255).astype(np.float32), photometric=0),
    "PGM, 16 bits": lambda: pgm(WIDE, 65535),
    "PGM, to 510": lambda: pgm(GREY.astype(int) * 2, 510),
    "PNG, 16 bits with alpha": lambda: png_of_16_bits(
        np.stack([WIDE, np.full_like(WIDE, 65535)], 2), 4
    ),
}


@pytest.mark.parametrize("name", GREYS)
def test_grey_of_more_than_8_bits_has_its_share_of_the_range(name):
    assert is_grey(GREYS[name](), GREY)


def test_colours_of_16_bits_are_those_of_8():
    assert (pixels(png_of_16_bits(COLOURS.astype(int) * 257, 2)) == COLOURS).all()
    assert (pixels(written(COLOURS, "PPM")) == COLOURS).all()


def test_tiffs_of_12_bits_reach_4095():
    """Two values are three bytes."""
    first, second = 4095, 16 * 128 + 8
    packed = bytes([first >> 4, (first & 15) << 4 | second >> 8, second & 255])
    file = tiff(np.frombuffer(packed, np.uint8)[None], width=2, bits=12)
    assert is_grey(file, np.array([[255, 128]]))


def test_dark_images_of_16_bits_stay_dark():
    dark = np.full((2, 3), 200, np.uint16)
    assert is_grey(written(dark, "PNG"), np.ones((2, 3)))
    assert is_grey(written(dark, "TIFF"), np.ones((2, 3)))
    assert is_grey(pgm(dark, 65535), np.ones((2, 3)))


ALPHA = np.array([[0, 128, 255], [255, 64, 0]], np.uint8)
ON_WHITE = np.rint((GREY.astype(float) * ALPHA + 255.0 * (255 - ALPHA)) / 255)
SEE_THROUGH = {
    "RGBA": lambda: written(np.dstack([GREY, GREY, GREY, ALPHA]), "PNG"),
    "RGBA, WebP": lambda: written(
        np.dstack([GREY, GREY, GREY, ALPHA]), "WEBP", lossless=True, exact=True
    ),
    "RGBA, TIFF": lambda: written(np.dstack([GREY, GREY, GREY, ALPHA]), "TIFF"),
    "RGBA of 16 bits": lambda: png_of_16_bits(
        np.dstack([GREY, GREY, GREY, ALPHA]).astype(int) * 257, 6
    ),
    "LA": lambda: written(np.dstack([GREY, ALPHA]), "PNG"),
    "LA of 16 bits": lambda: png_of_16_bits(np.dstack([GREY, ALPHA]).astype(int) * 257, 4),
}


@pytest.mark.parametrize("name", SEE_THROUGH)
def test_alpha_is_put_on_white(name):
    assert is_grey(SEE_THROUGH[name](), ON_WHITE, tolerance=1)


def test_transparent_colours_are_white():
    palette = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    expected = [[[10, 20, 30], [255, 255, 255], [70, 80, 90]]]
    assert pixels(written(palette, "PNG", transparency=1)).tolist() == expected
    assert pixels(written(palette, "GIF", transparency=1)).tolist() == expected
    grey = Image.fromarray(GREY)
    assert is_grey(written(grey, "PNG", transparency=100), np.where(GREY == 100, 255, GREY))
    wide = png_of_16_bits(WIDE, 0, transparent=100 * 257)
    assert is_grey(wide, np.where(GREY == 100, 255, GREY))


PLAIN = {
    "JPEG": ("JPEG", "RGB"), "JPEG, grey": ("JPEG", "L"), "JPEG, CMYK": ("JPEG", "CMYK"),
    "PNG": ("PNG", "RGB"), "PNG, grey": ("PNG", "L"), "PNG, palette": ("PNG", "P"),
    "PNG, black and white": ("PNG", "1"), "PNG, opaque": ("PNG", "RGBA"),
    "BMP": ("BMP", "RGB"), "TIFF": ("TIFF", "RGB"), "WebP": ("WEBP", "RGB"),
}  # fmt: skip


@pytest.mark.parametrize("name", PLAIN)
def test_images_of_8_bits_are_what_pillow_makes_of_them(name):
    form, mode = PLAIN[name]
    random = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    file = written(random, form, mode)
    with Image.open(file) as image:
        expected = np.asarray(image.convert("RGB"))
    assert (pixels(file) == expected).all()


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_the_orientation_of_exif_is_applied(form):
    """Of each orientation the stored image differs; upright, all of them are the same."""
    quarters = np.kron(np.array([[0, 80], [160, 255]], np.uint8), np.ones((16, 16), np.uint8))
    turned = {
        1: quarters, 2: quarters[:, ::-1], 3: quarters[::-1, ::-1], 4: quarters[::-1],
        5: quarters.T, 6: np.rot90(quarters), 7: quarters[::-1, ::-1].T, 8: np.rot90(quarters, -1),
    }  # fmt: skip
    for orientation, stored in turned.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        options = {"tiffinfo": exif} if form == "TIFF" else {"exif": exif}
        file = written(np.ascontiguousarray(stored), form, "RGB", **options)
        assert is_grey(file, quarters, tolerance=3), orientation


def test_broken_exif_breaks_no_image():
    file = written(COLOURS, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12")
    with Image.open(file) as image:
        expected = np.asarray(image.convert("RGB"))
    assert (pixels(file) == expected).all()


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (np.array([[0, 1.5]], np.float32), "its floats are 0 to 1.5; allowed are 0 to 1"),
        (np.array([[-0.1, 1]], np.float32), "its floats are -0.1 to 1; allowed are 0 to 1"),
        (np.array([[0, np.nan]], np.float32), "its floats are nan to nan; allowed are 0 to 1"),
        (np.array([[0, np.inf]], np.float32), "its floats are 0 to inf; allowed are 0 to 1"),
        (np.array([[0, -3]], np.int16), "its integers begin at -3; allowed are those from 0"),
        (np.array([[0, -3]], np.int32), "its integers begin at -3; allowed are those from 0"),
    ],
)
def test_values_without_a_known_range_are_refused(values, says):
    with pytest.raises(UnreadableImage) as caught:
        decode(tiff(values))
    assert str(caught.value) == says


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow warns of their metadata
def test_broken_files_raise_one_error():
    good = [written(COLOURS, form).getvalue() for form in ("PNG", "JPEG", "TIFF", "WEBP", "BMP")]
    random = np.random.default_rng(0)
    read, said = 0, []
    for number in range(500):
        content = bytearray(good[number % len(good)])
        for place in random.integers(0, len(content), 4):
            content[place] = random.integers(256)
        try:
            decode(io.BytesIO(content[: random.integers(1, 2 * len(content))]))
            read += 1
        except UnreadableImage as error:
            said.append(str(error))
    assert read > 20
    assert len(said) > 20
    assert all(text and "\n" not in text and len(text) <= 200 for text in said)


# -- the readers ---------------------------------------------------------------------------------


def write_shades(root, form: str) -> None:
    """Three classes, whose grey is 0, 128 and 255, in train/ and val/."""
    for part in ("train", "val"):
        for label, shade in enumerate((0, 128, 255)):
            folder = root / part / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(2):
                values = np.full((90, 90), shade * 257, np.uint16)
                Image.fromarray(values).save(folder / f"{number}.{form}")


@pytest.mark.parametrize("size", [16, 80])
@pytest.mark.parametrize("resize", [None, 40])
def test_folders_and_lmdb_files_hold_the_same_shades(tmp_path, size, resize):
    write_shades(tmp_path, "png")
    for part in ("train", "val"):
        options = [] if resize is None else ["--resize", str(resize)]
        folder2lmdb.main([str(tmp_path), "--split", part, *options])
    for name in ("imagefolder", "imagenet_lmdb"):
        test = load_dataset(name, str(tmp_path), size, 3).test
        if size == 16:
            means = test.images.float().mean(dim=(1, 2, 3))
        else:
            means = torch.tensor([np.asarray(test.open(place)).mean() for place in range(6)])
        assert means.round().tolist() == [0, 0, 128, 128, 255, 255]


def test_an_image_of_an_unknown_range_is_skipped_and_named(tmp_path, capsys):
    write_shades(tmp_path, "png")
    values = np.full((90, 90), 3.5, np.float32)
    Image.fromarray(values).save(tmp_path / "val" / "class1" / "2.tiff")
    assert len(load_dataset("imagefolder", str(tmp_path), 16, 3).test.labels) == 6
    assert "class1/2.tiff: cannot be read as an image (its floats are 3.5 to 3.5" in (
        capsys.readouterr().err
    )
