import os
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin
from torchvision.transforms.v2 import functional

from data.files import UserError
from data.images import LEVELS, MEAN, STD, Outshone, augment, locate, read, read_below


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


def test_floating_point_pixels_are_refused_by_the_file_s_name(tmp_path):
    Image.fromarray(ramp().astype(np.float32)).save(tmp_path / "x.tif")
    with pytest.raises(UserError, match=r"x\.tif: floating-point pixels"):
        read(tmp_path / "x.tif", 90)


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


def tiff(path, width, height, data, bits, white_is_zero, sample_format=1, big=False):
    """An uncompressed gray TIFF of any depth, written by hand: Pillow would turn some of them round."""
    order = ">" if big else "<"
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, 0 if white_is_zero else 1), (273, 200), (277, 1),
            (278, height), (279, len(data)), (339, sample_format)]
    entries = b"".join(struct.pack(order + "HHII", tag, 4, 1, value) for tag, value in tags)
    head = (b"MM" if big else b"II") + struct.pack(order + "HIH", 42, 8, len(tags)) + entries + bytes(4)
    path.write_bytes(head.ljust(200, b"\0") + data)
    return path


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 12, 16, 32])
def test_whatever_its_depth_a_tiff_whose_0_is_white_is_no_negative(tmp_path, bits, big):
    """Right, or refused by name: there is no third."""
    right, refused = 0, 0
    top = 2 ** min(bits, 16) - 1                                # 32 bits are used like 16
    levels = np.linspace(0, top, 64).round().astype(np.int64)   # dark to bright
    for white_is_zero in (False, True):
        stored = top - levels if white_is_zero else levels
        fields = ((stored[:, None] >> np.arange(bits)[::-1]) & 1).astype(np.uint8).reshape(-1)
        row = np.packbits(fields).tobytes()
        if bits > 8 and bits != 12 and not big:
            row = stored.astype(f"<u{bits // 8}").tobytes()
        path = tiff(tmp_path / "x.tif", 64, 64, row * 64, bits, white_is_zero, big=big)
        try:
            pixels = [read(path, 64), read(Image.open(path), 64)]
        except UserError as error:
            assert "TIFF" in str(error) and "16-bit gray PNG" in str(error)
            refused += 1
        else:
            assert all(far(some, np.tile((levels * 255 / top).round(), (64, 1))) <= 1 for some in pixels)
            right += 1
    assert right + refused == 2 and (right == 2 or bits > 8)


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_deflate", "packbits"])
def test_a_packed_or_turned_deep_tiff_whose_0_is_white(tmp_path, compression):
    levels = np.tile(np.linspace(0, 65535, 256).astype(np.uint16), (256, 1))
    for orientation, turns in ((1, 0), (6, -1)):
        Image.fromarray(65535 - levels).save(tmp_path / "x.tif", compression=compression,
                                             tiffinfo={262: 0, 274: orientation})
        for picture in (tmp_path / "x.tif", Image.open(tmp_path / "x.tif")):
            assert far(read(picture, 256), np.rot90((levels / 257).round(), turns)) <= 1


def test_unsigned_32_bits_do_not_wrap(tmp_path):
    levels = np.tile(np.linspace(0, 2 ** 32 - 1, 64).astype("<u4"), (64, 1))
    path = tiff(tmp_path / "x.tif", 64, 64, levels.tobytes(), 32, white_is_zero=False)
    assert far(read(path, 64), (levels / (2 ** 24 + 2 ** 16 + 2 ** 8 + 1)).round()) <= 1


def anatomy(bits=12, size=512):
    """A soft chest of so many bits whose brightest pixels are few, as in any clean picture."""
    y, x = np.mgrid[:size, :size] / size - 0.5
    soft = np.exp(-((x / 0.3) ** 2 + (y / 0.4) ** 2)) * 0.7 + 0.3 * np.exp(-((x - 0.1) ** 2 + y ** 2) / 0.0004)
    return (soft / soft.max() * (2 ** bits - 1)).astype(np.uint16)


def hot(pixels, value=65535):
    pixels = pixels.copy()
    pixels[7, 9] = value
    return pixels


def marker(pixels, value=65535):
    """A letter with soft edges: half a per cent of the picture."""
    pixels, letter = pixels.copy(), np.zeros(pixels.shape, np.uint8)
    letter[20:60, 20:28] = letter[52:60, 20:50] = 255
    soft = np.asarray(Image.fromarray(letter).resize((256, 256)).resize((512, 512), Image.Resampling.BICUBIC)) / 255
    return np.maximum(pixels, (soft * value).astype(np.uint16))


@pytest.mark.parametrize("bits", [8, 10, 12, 13])
@pytest.mark.parametrize("outlier", [hot, marker])
def test_a_few_pixels_far_brighter_than_all_others_do_not_darken_the_rest(tmp_path, bits, outlier):
    clean = anatomy(bits)
    spoilt = outlier(clean)
    Image.fromarray(spoilt).save(tmp_path / "x.png")
    with pytest.warns(Outshone, match="shown as white"):
        pixels = read(tmp_path / "x.png", 512)
    same = spoilt == clean
    assert same.mean() > 0.99 and (np.abs(pixels.astype(int) - read(Image.fromarray(clean), 512))[same] <= 1).all()
    assert pixels[spoilt == 65535].min() == 255


@pytest.mark.parametrize("pixels", [
    anatomy(12), anatomy(16), hot(anatomy(12), 8191), hot(anatomy(16)), np.zeros((64, 64), np.uint16),
    np.full((64, 64), 300, np.uint16), np.tile(np.linspace(0, 65535, 512).astype(np.uint16), (512, 1)),
    # a device that is part of the picture: 2 % of it
    np.where(np.arange(512 * 512).reshape(512, 512) % 512 < 11, 65535, anatomy(12)).astype(np.uint16),
    # a bright tail without a gap: noise around a dark level
    np.random.default_rng(0).exponential(400, (512, 512)).astype(np.uint16),
    (np.random.default_rng(0).pareto(2.5, (512, 512)) * 300).clip(0, 65535).astype(np.uint16),
], ids=lambda pixels: f"{pixels.max()}")
def test_clean_pictures_keep_the_range_of_their_brightest_pixel(pixels, recwarn):
    top = 2 ** max(8, int(pixels.max()).bit_length()) - 1
    assert far(read(Image.fromarray(pixels), len(pixels)), (pixels * (255 / top)).round()) <= 1
    assert not recwarn.list


def test_the_colours_of_a_cmyk_jpeg_are_not_turned_round(tmp_path):
    Image.fromarray(ramp()).convert("CMYK").save(tmp_path / "x.jpg", quality=95)
    assert far(read(tmp_path / "x.jpg", 90)[15:75], ramp()) <= 4


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


@pytest.mark.parametrize("extra", ["text", "profile"])
def test_a_long_comment_or_colour_profile_is_no_fault(tmp_path, extra):
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "x" * 2_000_000, zip=True)
    kept = {"text": {"pnginfo": info}, "profile": {"icc_profile": bytes(2_000_000)}}[extra]
    Image.fromarray(ramp()).save(tmp_path / "x.png", **kept)
    assert far(read(tmp_path / "x.png", 90)[15:75], ramp()) == 0


def test_a_photograph_of_several_pictures_is_read_as_its_first(tmp_path):
    """Cameras and telephones write such files under the name .jpg; Pillow calls them MPO."""
    first = Image.fromarray(ramp())
    first.save(tmp_path / "x.mpo", save_all=True, append_images=[first.rotate(180)], quality=95)
    (tmp_path / "x.mpo").rename(tmp_path / "x.jpg")
    assert Image.open(tmp_path / "x.jpg").format == "MPO" and far(read(tmp_path / "x.jpg", 90)[15:75], ramp()) <= 4


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


@pytest.mark.parametrize("name, data, words", [
    ("scan.dcm", bytes(128) + b"DICM\2\0\0\0UL", ["DICOM", "window", "MONOCHROME1", "dcmj2pnm"]),
    ("1.png", bytes(128) + b"DICM\2\0\0\0UL", ["DICOM"]),
    ("old.dcm", b"\x08\0\x05\0\x0a\0\0\0ISO_IR 100", ["DICOM"]),
    ("a.jpg", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n", ["Git LFS", "git lfs pull"]),
    ("a.png", b"<!DOCTYPE html><html>404</html>", ["web page", "download"]),
    ("a.png", b"PK\3\4" + bytes(60), ["zip"]), ("a.png", b"\x1f\x8b\x08" + bytes(60), ["gzip"]),
    ("a.jp2", b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(60), ["JPEG 2000"]),
    ("a.tif", b"II*\0\x08\0\0\0\0\0", ["TIFF"]), ("a.png", b"nothing", ["not a picture of a known format"])])
def test_what_is_no_picture_is_called_by_its_name(tmp_path, name, data, words):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError) as error:
        read(tmp_path / name, 64)
    message = str(error.value)
    assert message.startswith(f"{tmp_path / name}: cannot be read (") and "\n" not in message
    assert all(word in message for word in words)


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


def test_the_jitter_is_torchvisions_on_every_pixel():
    """Looking 256 jittered levels up gives what torchvision makes of the crop; contrast is about the levels' mean."""
    batch = torch.randint(0, 256, (3, 40, 40), dtype=torch.uint8)
    images = augment(batch, 32, torch.Generator().manual_seed(5))
    draws = torch.rand(3, 5, generator=torch.Generator().manual_seed(5)).tolist()
    for picture, image, (y, x, *jitter) in zip(batch, images, draws, strict=True):
        brightness, contrast, gamma = (2 * u - 1 for u in jitter)
        pixels = functional.crop(picture[None], int(y * 9), int(x * 9), 32, 32)
        pixels = functional.adjust_gamma(functional.to_dtype(pixels, torch.float32, scale=True), 1 + 0.15 * gamma)
        mean = (torch.arange(256) / 255).pow(1 + 0.15 * gamma).mean()
        pixels = ((1 + 0.1 * contrast) * pixels - 0.1 * contrast * mean).clamp(0, 1)
        pixels = functional.adjust_brightness(pixels, 1 + 0.1 * brightness)
        torch.testing.assert_close(image, functional.normalize(pixels.expand(3, -1, -1), MEAN, STD))


def test_augment_shifts_and_shades_but_never_flips():
    batch = torch.arange(240, dtype=torch.uint8).repeat(200, 240, 1)
    images = augment(batch, 224, torch.Generator().manual_seed(0))[:, 0] * STD[0] + MEAN[0]
    assert (images[:, :, 1:] >= images[:, :, :-1] - 1e-6).all(), "left stays left"
    assert images.min() > -1e-5 and images.max() < 1 + 1e-5
    means = images.mean((1, 2))
    assert 0.02 < means.std() < 0.1
    plain = LEVELS[:240]
    assert (images.mean(0).mean(0) - plain[8:232]).abs().max() < 0.03
    starts = {round(float(value), 3) for value in augment(batch, 239, torch.Generator().manual_seed(0))[:, 0, 0, 0]}
    assert len(starts) > 2
    column = torch.arange(240, dtype=torch.uint8).view(1, 240, 1).expand(200, 240, 240)
    assert len(augment(column, 224, torch.Generator().manual_seed(0))[:, 0, 0, 0].unique()) > 20
