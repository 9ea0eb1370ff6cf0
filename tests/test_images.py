import os
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from data.files import UserError
from data.images import LEVELS, MEAN, STD, augment, locate, read, read_below


def ramp(height=60, width=90):
    """Gray levels 0 … 255 from left to right."""
    return np.tile(np.linspace(0, 255, width).round().astype(np.uint8), (height, 1))


def far(a, b):
    return np.abs(a.astype(int) - b.astype(int)).max()


def test_one_rule_for_every_aspect_ratio(tmp_path):
    wide = read(Image.fromarray(np.full((50, 100), 200, np.uint8)), 64)
    assert wide.shape == (64, 64) and wide.dtype == np.uint8
    assert (wide[:16] == 0).all() and (wide[48:] == 0).all() and (wide[16:48] == 200).all()
    tall = read(Image.fromarray(np.full((100, 50), 200, np.uint8)), 64)
    assert (tall == wide.T).all()
    assert (read(Image.fromarray(np.full((7, 7), 9, np.uint8)), 64) == 9).all()
    assert read(Image.new("L", (5000, 1), 80), 64).max() == 80


def test_downscaling_is_antialiased():
    stripes = np.zeros((512, 512), np.uint8)
    stripes[:, ::2] = 255
    assert far(read(Image.fromarray(stripes), 64)[:, 2:-2], np.full((64, 60), 128)) <= 3


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp", "webp"])
def test_8_bit_gray_files(tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(ramp()).save(path, quality=95)
    assert far(read(path, 90)[15:75], ramp()) <= 4


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "CMYK", "YCbCr", "1"])
def test_other_modes_become_gray(mode):
    image = Image.fromarray(ramp()).convert(mode)
    expected = np.asarray(image.convert("L")) if mode == "1" else ramp()
    assert far(read(image, 90)[15:75], expected) <= 3


def test_colour_is_weighed_like_the_eye():
    pixels = read(Image.new("RGB", (10, 10), (255, 0, 0)), 10)
    assert (pixels == 76).all()  # 0.299 · 255


def test_what_is_transparent_is_black_not_what_hides_below(tmp_path):
    image = Image.new("RGBA", (10, 10), (255, 255, 255, 0))
    image.paste((200, 200, 200, 255), (0, 0, 5, 10))
    pixels = read(image, 10)
    assert (pixels[:, :5] == 200).all() and (pixels[:, 5:] == 0).all()
    palette = Image.fromarray(np.repeat(np.array([[0, 1]], np.uint8), 5, 1).repeat(10, 0), "P")
    palette.putpalette([200, 200, 200, 255, 255, 255])
    palette.save(tmp_path / "p.png", transparency=1)
    assert (read(tmp_path / "p.png", 10) == pixels).all()


def test_16_bit_is_scaled_neither_clipped_nor_wrapped(tmp_path):
    deep = np.tile(np.linspace(0, 65535, 256).astype(np.uint16), (256, 1))
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert far(read(tmp_path / "deep.png", 256), (deep / 257).round()) <= 1
    Image.fromarray(deep).save(tmp_path / "deep.tif")
    assert far(read(tmp_path / "deep.tif", 256), (deep / 257).round()) <= 1
    middle = np.full((8, 8), 32768, np.uint16)
    assert (read(Image.fromarray(middle), 8) == 128).all()


def test_12_bit_pixels_in_a_16_bit_file_use_their_own_range(tmp_path):
    deep = np.tile(np.linspace(0, 4095, 256).astype(np.uint16), (256, 1))
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert far(read(tmp_path / "deep.png", 256), (deep / 16.06).round()) <= 1


@pytest.mark.parametrize("colour, channels", [(2, 3), (4, 2), (6, 4)])
def test_16_bit_colour_is_refused_by_name(tmp_path, colour, channels):
    """Pillow reads its high byte only: 12-bit values would be black."""
    rows = b"".join(b"\0" + np.full((8, channels), 4095, ">u2").tobytes() for _ in range(8))
    (tmp_path / "deep.png").write_bytes(png(8, 8, rows, bits=16, colour=colour))
    for picture in (tmp_path / "deep.png", Image.open(tmp_path / "deep.png")):
        with pytest.raises(UserError, match="16-bit gray"):
            read(picture, 8)


def test_a_corrupt_exif_says_nothing(tmp_path, recwarn):
    garbage = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x04\x40\0\0abc\0\0\0\0\0"
    Image.fromarray(ramp()).save(tmp_path / "x.jpg", exif=garbage, quality=95)
    assert far(read(tmp_path / "x.jpg", 90)[15:75], ramp()) <= 4
    assert not recwarn.list


def test_32_bit_and_8_bit_values_in_wide_types():
    assert far(read(Image.fromarray(ramp(90).astype(np.int32)), 90), ramp(90)) == 0
    with pytest.raises(UserError, match="floating-point"):
        read(Image.fromarray(ramp().astype(np.float32)), 90)


def test_the_exif_orientation_is_obeyed(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(ramp(90)).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    assert far(read(tmp_path / "turned.jpg", 90), np.rot90(ramp(90), -1)) <= 4


def test_the_fast_jpeg_path_shows_the_same_picture(tmp_path):
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (40, 33), np.uint8)
    big = Image.fromarray(coarse).resize((1320, 1600), Image.Resampling.BICUBIC)
    big.convert("RGB").save(tmp_path / "big.jpg", quality=95)
    with Image.open(tmp_path / "big.jpg") as image:
        plain = read(image.convert("L"), 256)
    fast = read(tmp_path / "big.jpg", 256)
    assert np.abs(fast.astype(int) - plain.astype(int)).mean() < 1
    assert far(fast, plain) < 16


def test_a_pil_image_and_its_file_give_the_same(tmp_path):
    Image.fromarray(ramp()).convert("RGB").save(tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as image:
        assert (read(image, 32) == read(tmp_path / "x.png", 32)).all()
        assert image.mode == "RGB" and image.size == (90, 60)


def damaged(folder):
    """name → (path, what the reason must say)"""
    noise = np.random.default_rng(0).integers(0, 256, (300, 300), np.uint8)
    for suffix in ("png", "jpg"):
        Image.fromarray(noise).save(folder / f"whole.{suffix}")
        data = (folder / f"whole.{suffix}").read_bytes()
        (folder / f"cut.{suffix}").write_bytes(data[:len(data) // 2])
        (folder / f"last_bytes.{suffix}").write_bytes(data[:-200])
    data = bytearray((folder / "whole.png").read_bytes())
    data[len(data) // 2] ^= 0xFF
    (folder / "flipped.png").write_bytes(data)
    (folder / "empty.png").write_bytes(b"")
    (folder / "page.jpg").write_text("<!DOCTYPE html><html>404</html>")
    (folder / "postscript.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    return ["cut.png", "cut.jpg", "last_bytes.png", "last_bytes.jpg", "flipped.png", "empty.png", "page.jpg",
            "postscript.png"]


def test_damaged_files_are_noticed_by_their_pixels(tmp_path):
    for name in damaged(tmp_path):
        with pytest.raises(UserError, match=name) as error:
            read(tmp_path / name, 64)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="no such file"):
        read(tmp_path / "absent.png", 64)
    with pytest.raises(UserError):
        read(tmp_path, 64)


def png(width, height, data, bits=8, colour=0):

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("sides", [(100_000, 100_000), (12_000, 12_000), (9_100, 9_100), (2**31 - 1, 2**31 - 1)])
def test_a_picture_that_claims_too_many_pixels_is_not_decoded(tmp_path, sides, recwarn):
    (tmp_path / "bomb.png").write_bytes(png(*sides, bytes(1000)))
    with pytest.raises(UserError, match="refused|cannot be read"):
        read(tmp_path / "bomb.png", 64)
    assert not recwarn.list


def test_nothing_outside_the_folder_is_read(tmp_path):
    root, outside = tmp_path / "images", tmp_path / "outside"
    root.mkdir(), outside.mkdir()
    Image.fromarray(ramp()).save(outside / "x.png")
    Image.fromarray(ramp()).save(root / "y.png")
    (root / "link.png").symlink_to(outside / "x.png")
    (root / "folder").symlink_to(outside)
    (root / "inner.png").symlink_to(root / "y.png")
    for name in ("../outside/x.png", str(outside / "x.png"), "link.png", "folder/x.png", "a/../../outside/x.png", "",
                 "y.png\0", "."):
        with pytest.raises(UserError, match="leads out"):
            read_below(root, name, 32)
    os.mkfifo(root / "pipe.png")
    for name in ("pipe.png", "inner"):
        (root / "inner").mkdir(exist_ok=True)
        with pytest.raises(UserError, match="not a file"):
            read_below(root, name, 32)
    assert locate(root, "y.png") == root / "y.png"
    assert (read_below(root, "inner.png", 32) == read_below(root, "y.png", 32)).all()
    (tmp_path / "linked").symlink_to(root)
    assert (read_below(tmp_path / "linked", "y.png", 32) == read(root / "y.png", 32)).all()


def test_augment_without_a_generator_is_the_normalised_centre():
    batch = torch.randint(0, 256, (3, 40, 40), dtype=torch.uint8)
    images = augment(batch, 32)
    assert images.shape == (3, 3, 32, 32) and images.dtype == torch.float32
    centre = batch[:, None, 4:36, 4:36].float() / 255
    expected = (centre - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    torch.testing.assert_close(images, expected)
    torch.testing.assert_close(augment(batch, 40)[:, 0], (batch / 255 - MEAN[0]) / STD[0])
    with pytest.raises(ValueError, match="no crop of 41"):
        augment(batch, 41)


def test_augment_depends_on_its_generator_alone():
    batch = torch.randint(0, 256, (4, 40, 40), dtype=torch.uint8)
    torch.manual_seed(1)
    one = augment(batch, 32, torch.Generator().manual_seed(5))
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert torch.equal(one, augment(batch, 32, torch.Generator().manual_seed(5)))
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.equal(one, augment(batch, 32, torch.Generator().manual_seed(6)))


def test_augment_shifts_and_shades_but_never_flips():
    levels = LEVELS * 255
    batch = torch.from_numpy(np.tile(levels[:240], (240, 1)).astype(np.uint8))[None].repeat(200, 1, 1)
    images = augment(batch, 224, torch.Generator().manual_seed(0))[:, 0] * STD[0] + MEAN[0]
    assert (images[:, :, 1:] >= images[:, :, :-1] - 1e-6).all(), "left stays left"
    assert images.min() > -1e-5 and images.max() < 1 + 1e-5
    means = images.mean((1, 2))
    assert 0.02 < means.std() < 0.1
    plain = torch.from_numpy(LEVELS[:240])
    assert (images.mean(0).mean(0) - plain[8:232]).abs().max() < 0.03
    starts = {round(float(value), 3) for value in augment(batch, 239, torch.Generator().manual_seed(0))[:, 0, 0, 0]}
    assert len(starts) > 2
    column = torch.arange(240, dtype=torch.uint8).view(1, 240, 1).expand(200, 240, 240)
    assert len(augment(column, 224, torch.Generator().manual_seed(0))[:, 0, 0, 0].unique()) > 20
