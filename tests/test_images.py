"""Images of strangers: every depth, transparency and orientation as LAION's downloader had them, and broken files."""

import io
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from memsub.io.images import MOST_PIXELS, SUFFIXES, decode_png, image_files, read_images, rgb
from memsub_extra.archives.recovery import decoded

SIDE = 96
RED = np.zeros((SIDE, SIDE, 4), np.uint8)
RED[32:64, 32:64] = (200, 0, 0, 255)  # a red square on nothing
RAMP = np.linspace(0, 1, SIDE * SIDE).reshape(SIDE, SIDE)


def file(image: Image.Image, form: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def keyed(image: Image.Image, form: str = "PNG") -> bytes:
    """With one colour that counts as transparent, black."""
    return file(image, form, transparency=(0, 0, 0) if image.mode == "RGB" else 0)


def as_everything(content: bytes, path: Path) -> list[np.ndarray]:
    """As a reference or a real image, as a fetched one, and as one of a table."""
    path.write_bytes(content)
    return [read_images([path], SIDE)[0], decoded(content), decode_png(content)]


@pytest.mark.parametrize(
    "content",
    [
        file(Image.fromarray(RED), "PNG"),
        file(Image.fromarray(RED), "WEBP", lossless=True),
        file(Image.fromarray(RED), "TIFF"),
        file(Image.fromarray(RED).quantize(), "PNG"),
        file(Image.fromarray(RED).convert("LA"), "PNG"),
        file(Image.fromarray(RED), "GIF"),
        keyed(Image.fromarray(RED).convert("RGB")),
        keyed(Image.fromarray(RED).convert("L")),
        keyed(Image.fromarray(RED[..., 3].astype(np.uint16) * 257)),
    ],
    ids=["png", "webp", "tiff", "palette", "gray", "gif", "key", "gray key", "16-bit key"],
)
def test_what_is_transparent_is_white(content, tmp_path):
    for image in as_everything(content, tmp_path / "x.png"):
        assert image.shape == (SIDE, SIDE, 3)
        assert (image[5, 5] == 255).all()
        assert image[48, 48, 1] == image[48, 48, 2]
        assert image[48, 48, 0] in (200, image[48, 48, 1])  # red, or gray


def test_half_transparent_is_mixed_with_white():
    half = np.full((SIDE, SIDE, 4), (200, 0, 100, 128), np.uint8)
    assert rgb(file(Image.fromarray(half), "PNG")).getpixel((3, 3)) == (227, 127, 177)


@pytest.mark.parametrize(
    ("content", "levels"),
    [
        (file(Image.fromarray((RAMP * 65535).astype(np.uint16)), "PNG"), 256),
        (file(Image.fromarray((RAMP * 65535).astype(np.uint16)), "TIFF"), 256),
        (file(Image.fromarray((RAMP * 65535).astype(np.int32)), "TIFF"), 256),
        (file(Image.fromarray(RAMP.astype(np.float32)), "TIFF"), 256),
        (file(Image.fromarray((RAMP * 255).astype(np.float32)), "TIFF"), 256),
        (file(Image.fromarray((RAMP * 1e12).astype(np.float32)), "TIFF"), 256),
        (file(Image.fromarray(RAMP > 0.5), "PNG"), 2),
        (file(Image.fromarray((RAMP * 255).astype(np.uint8)), "BMP"), 256),
    ],
    ids=["16-bit png", "16-bit tiff", "32-bit tiff", "float", "float of 255", "large float", "1 bit", "bmp"],
)
def test_every_depth_becomes_eight_bits(content, levels, tmp_path):
    for image in as_everything(content, tmp_path / "x.tif"):
        assert len(np.unique(image)) == levels
        assert image[0, 0].tolist() == [0] * 3 and image[-1, -1].tolist() == [255] * 3
        assert (np.abs(image[..., 0] - RAMP * 255) < 2).mean() > 0.99 or levels == 2


def test_floats_that_are_no_numbers_are_black(tmp_path):
    values = RAMP.astype(np.float32)
    values[0, :2] = np.nan, np.inf
    image = rgb(file(Image.fromarray(values), "TIFF"))
    assert image.getpixel((0, 0)) == image.getpixel((1, 0)) == (0, 0, 0)
    assert image.getpixel((SIDE - 1, SIDE - 1)) == (255, 255, 255)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "WEBP", "TIFF", "PNG"])
def test_images_stand_the_right_way_up(orientation, form, tmp_path):
    """The corners of the same image, stored turned in each of the eight ways that EXIF knows."""
    shown = np.zeros((64, SIDE, 3), np.uint8)
    shown[:32, :48], shown[:32, 48:], shown[32:, :48] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    stored = {
        1: lambda x: x,
        2: lambda x: x[:, ::-1],
        3: lambda x: x[::-1, ::-1],
        4: lambda x: x[::-1],
        5: lambda x: x.transpose(1, 0, 2),
        6: lambda x: np.rot90(x),
        7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
        8: lambda x: np.rot90(x, -1),
    }[orientation](shown)
    image = Image.fromarray(np.ascontiguousarray(stored))
    exif = image.getexif()
    exif[0x0112] = orientation
    found = np.asarray(rgb(file(image, form, exif=exif))).astype(int)
    assert found.shape == shown.shape
    for y, x in ((10, 10), (10, 86), (54, 10), (54, 86)):
        assert np.abs(found[y, x] - shown[y, x]).max() < 30


def test_paper_and_first_frames():
    assert min(rgb(file(Image.new("CMYK", (SIDE, SIDE), (0, 0, 0, 0)), "JPEG")).getpixel((5, 5))) > 250
    frames = [Image.new("RGB", (SIDE, SIDE), colour) for colour in ("red", "blue")]
    for form in ("GIF", "WEBP", "PNG", "TIFF"):
        moving = file(frames[0], form, save_all=True, append_images=frames[1:])
        red, _, blue = rgb(moving).getpixel((5, 5))
        assert red > 240 and blue < 15, form


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def bomb(side: int) -> bytes:
    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


WHOLE = file(Image.fromarray(RED), "PNG")
BROKEN = {
    "half.png": WHOLE[: len(WHOLE) // 2],
    "empty.png": b"",
    "page.jpg": b"<html>not found</html>",
    "script.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 80 80\n",
    "icon.png": b"\x00\x00\x01\x00",
    "noise.gif": b"GIF89a" + bytes(range(200)),
    "noise.tif": b"II*\x00\x08\x00\x00\x00\xff\xff" + bytes(60),
    "noise.webp": b"RIFF\x10\x00\x00\x00WEBPVP8 " + bytes(20),
    "noise.bmp": b"BM" + bytes(52),
    "zero.png": WHOLE[:16] + bytes(8) + WHOLE[24:],
    "bomb.png": bomb(9_000),
    "large bomb.png": bomb(60_000),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_broken_files_are_named_and_passed_over(tmp_path):
    for name, content in BROKEN.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError) as error:
            read_images([tmp_path / name], SIDE)
        larger = "larger than is read" if "bomb" in name else "truncated or no image"
        assert str(error.value).startswith(f"{tmp_path / name} is {larger}: ")
    (tmp_path / "whole.png").write_bytes(WHOLE)
    broken: dict[Path, str] = {}
    assert len(read_images(image_files(tmp_path), SIDE, broken)) == 1
    assert sorted(path.name for path in broken) == sorted(BROKEN)


def test_a_bomb_is_not_decoded():
    assert MOST_PIXELS < 9_000**2
    began = time.process_time()
    with pytest.raises(ValueError, match="9000 x 9000 pixels, more than 80,000,000"):
        rgb(bomb(9_000))
    assert time.process_time() - began < 0.2


def test_an_orientation_that_cannot_be_read_loses_no_image():
    image = Image.fromarray(RED).convert("RGB")
    for exif in (b"Exif\x00\x00garbage", b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\xff\xff" + b"\x01" * 30):
        assert rgb(file(image, "JPEG", exif=exif)).size == image.size


def test_files_of_every_suffix_in_natural_order(tmp_path):
    names = ["9.png", "10.JPG", "a/2.webp", "a/11.Tiff", *(f"x{i}{suffix}" for i, suffix in enumerate(SUFFIXES))]
    for name in (*names, "._9.png", "notes.txt", "0.svg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert [path.relative_to(tmp_path).as_posix() for path in image_files(tmp_path)] == names
    assert image_files(tmp_path / "nowhere") == []
