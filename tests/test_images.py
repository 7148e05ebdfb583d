"""Images of strangers: every depth, transparency and orientation as LAION's downloader had them, and broken files."""

import io
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from memsub.io.images import MOST_PIXELS, SUFFIXES, decode_png, image_files, read_images, rgb
from memsub.measure.evaluation import score
from memsub.measure.exact import LEVEL, exact_p
from memsub.measure.metrics import CopyMetric, Metrics, PromptMetric
from memsub.measure.verdict import by_threshold
from memsub.prompts import Prompts
from memsub_extra.archives.recovery import decoded
from memsub_extra.run.data import Data
from memsub_extra.run.parameters import Parameters

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


# --- training images ---------------------------------------------------------------------------------------------


def data_of(tmp_path, table: dict, **more) -> Data:
    """Of a list of memorized prompts, with training images in `gt`, 8 pixels wide."""
    table = pd.DataFrame({"prompt": [f"caption {i}" for i in range(6)], "kind": "memorized"} | table)
    part = {"images": str(tmp_path / "gt")} | more
    data = Data(Parameters.checked({"model": "sd14", "grid": {"memorized": 6, "sizes": [2]}, "data": part}), lambda: 8)
    data.prompts = Prompts(table, ("memorized",))
    return data


def put(path: Path, colour: str, form: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (80, 70), colour)
    image.paste("purple", (40, 40, 80, 70))  # images of one colour are no training images
    image.save(path, form)


def test_all_images_of_an_index_count(tmp_path):
    for name, colour in {"3/0.png": "red", "3/1.gif": "blue", "4/0.JPG": "lime", "5/10.png": "white"}.items():
        put(tmp_path / "gt" / name, colour, {"JPG": "JPEG"}.get(name[4:]))
    put(tmp_path / "gt" / "5" / "9.png", "black")
    put(tmp_path / "gt" / "8" / "0.tiff", "red")
    (tmp_path / "gt" / "8" / "1.png").write_bytes(WHOLE[:60])
    (tmp_path / "gt" / "7").mkdir()
    (tmp_path / "gt" / "7" / "0.png").write_bytes(b"<html>")
    data = data_of(tmp_path, {"index": [3, 4.0, "5", 6, 7, 8]})
    with pytest.warns(UserWarning, match=r"2 images are passed over: .*7/0\.png is truncated.*8/1\.png is truncated"):
        images = data.training_images
    assert {i: len(of_one) for i, of_one in images.items()} == {0: 2, 1: 1, 2: 2, 5: 1}
    assert [image[0, 0].tolist() for image in images[0]] == [[255, 0, 0], [0, 0, 255]]
    assert data.references[2][0, 0].tolist() == [0, 0, 0]  # 9 before 10
    assert data.references_of([1, 5]).shape == (2, 8, 8, 3)
    assert [of_one.shape for of_one in data.references_of([0, 5])] == [(2, 8, 8, 3), (1, 8, 8, 3)]
    assert data.corpus.shape == (6, 8, 8, 3)


def mean_colour(images: np.ndarray) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.from_numpy(images.mean((1, 2))).float() + 1e-6, dim=1)


def nearest_mean(images, prompts, references):
    """What a metric of another package is given as the reference of each image."""
    return np.abs(images.mean((1, 2)) - references.mean((1, 2))).sum(1)


def test_the_most_similar_training_image_counts():
    red, green, blue = (np.broadcast_to(np.array(c, np.uint8) * 255, (8, 8, 3)) for c in np.eye(3, dtype=int))
    copy = CopyMetric(mean_colour, 0.9)
    references = [np.stack([red, blue]), np.stack([green]), np.stack([green, red, blue])]
    images = np.stack([blue, blue, red])
    assert copy.similarity(images, references).round(3).tolist() == [1, 0, 1]
    _, best = copy.best(images, references)
    np.testing.assert_array_equal(best, [blue, green, red])
    assert by_threshold(copy)(images, list("abc"), references).tolist() == [True, False, True]
    first = np.stack([of_one[0] for of_one in references])  # one each: an array, as before
    assert copy.similarity(images, first).round(3).tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match="caption 1 of 3 has no training image"):
        copy.similarity(images, [references[0], references[1][:0], references[2]])

    prompt = PromptMetric(mean_colour, lambda texts: torch.ones(len(texts), 3))
    metrics = Metrics(copy, prompt, {"distance": nearest_mean})
    scored = score(lambda prompts, seeds: np.stack([blue, red] * 3), metrics, list("abc"), references, seeds=[0, 1])
    assert scored["replicated"].tolist() == [True, True, False, False, True, True]
    assert (scored["distance"] == 0).tolist() == scored["replicated"].tolist()


def test_the_exact_test_takes_the_most_similar():
    class World:
        name = "noise"

        def content(self, prompt):
            return prompt

        def alternatives(self, contents, seed=0):
            for i, _ in enumerate(contents):
                yield np.random.default_rng(i).integers(0, 256, (255, 8, 8, 3), dtype=np.uint8)

    first, second, other = np.random.default_rng(9).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    one = exact_p(np.stack([second, other]), ["a", "b"], np.stack([first, first]), World())
    several = exact_p(np.stack([second, other]), ["a", "b"], [np.stack([first, second]), first[None]], World())
    assert several[0] == LEVEL < one[0]
    assert several[1] == one[1]


@pytest.mark.parametrize(
    ("table", "layout", "told"),
    [
        ({}, {"0/0.png": "red"}, r"gt holds '0/0\.png', .* numbered from 1 \('caption 0' is 1\), .* neighbour's image"),
        ({}, {"x/0.png": "red"}, r"for example .*gt/1, .*it holds 'x'"),  # without indices, from 1
        ({"index": None}, {}, r"for example .*gt/1, .*there is no such folder"),
        ({"index": range(6)}, {"0000_x.png": "red"}, r"expected .*gt/<index>/\*\.png .*it holds '0000_x\.png'"),
        ({"index": range(6)}, {"sd1/0/0.png": "red"}, r"for example .*gt/0, .*it holds 'sd1'"),
        ({"index": range(6)}, {f"x{i}.png": "red" for i in range(9)}, r"'x4\.png' and 4 more"),
        ({"index": ["../x", *range(5)]}, {"a.png": "red"}, r"caption 1 has the index '\.\./x', which is no plain name"),
        ({"index": ["/etc", *range(5)]}, {"a.png": "red"}, "caption 1 has the index '/etc'"),
        ({"index": [1, 2, 3, 3.0, 4, 5]}, {"3/0.png": "red"}, "captions 3 and 4 have one index, '3', and no common"),
        (
            {"index": [1, 2, 3, "3", 4, 5], "url": list("abcdef")},
            {"3/0.png": "red"},
            "captions 3 and 4 have one index, '3', and no common url",
        ),
    ],
)
def test_folders_of_another_layout_are_named(tmp_path, table, layout, told):
    for name, colour in layout.items():
        put(tmp_path / "gt" / name, colour)
    with pytest.raises(ValueError, match=told):
        data_of(tmp_path, table).training_images  # noqa: B018


def test_two_captions_of_one_address_share_its_images(tmp_path):
    put(tmp_path / "gt" / "3" / "0.png", "red")
    data = data_of(tmp_path, {"index": [3, 3, None, 4, 5, 6], "url": ["a", "a", *"cdef"]})
    assert sorted(data.training_images) == [0, 1]


@pytest.mark.filterwarnings("ignore:.*are passed over")
def test_real_images_pass_over_what_is_broken(tmp_path):
    for i in range(12):
        put(tmp_path / "real" / f"{i}.png", f"rgb({i}, 0, 0)")
    for i in (0, 5, 11):
        (tmp_path / "real" / f"{i}.png").write_bytes(b"broken")
    data = data_of(tmp_path, {}, real=str(tmp_path / "real"))
    with pytest.warns(UserWarning, match=r"data\.real: .* 1 images are passed over: .*/0\.png is truncated"):
        first = data.real_images(0, 4)
    parts = [first, data.real_images(4, 8), data.real_images(8, 12), data.real_images(12, 16)]
    assert np.concatenate(parts)[:, 0, 0, 0].tolist() == [1, 2, 3, 4, 6, 7, 8, 9, 10]
    for file in (tmp_path / "real").iterdir():
        file.write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"data\.real: a folder of images.*no file .* can be read"):
        data_of(tmp_path, {}, real=str(tmp_path / "real")).real_images()
