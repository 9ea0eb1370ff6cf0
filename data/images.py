"""Pictures: `read` turns a file or a PIL image into (S, S) uint8; `augment` turns a batch of these into the encoder's
input.

Choice: the aspect ratio is kept and nothing is cut off: the longer side is scaled to S, the shorter side is padded with
black at both ends. A resize of the shorter side with a crop would lose a sixth of a portrait picture, and with it the
apices and costophrenic angles that reports mention.
"""

import os
import re
import warnings
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, PngImagePlugin

from data.files import UserError

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP")  # Pillow would also start Ghostscript for an EPS
MAX_PIXELS = 80_000_000  # the largest radiographs of IU X-Ray and MIMIC-CXR have 18 million
PngImagePlugin.MAX_TEXT_CHUNK = 2**24  # Pillow refuses pictures with a comment or colour profile of more than 1 MB
ORIENTATION, PHOTOMETRIC, SAMPLE_FORMAT = 0x0112, 0x0106, 0x0153  # tags of EXIF and TIFF

# Files that are often given instead of pictures: (position of a mark, the mark's bytes, what the file is; the remedy).
NOT_PICTURES = (
    (128, b"DICM", "it is DICOM; convert it to PNG with the window applied and MONOCHROME1 inverted, for example with "
                   "DCMTK: dcmj2pnm +Wi 1 +on scan.dcm scan.png"),
    (0, b"version https://git-lfs", "it is a Git LFS pointer, not the file; run git lfs pull"),
    (0, b"\x1f\x8b", "it is a gzip archive; unpack it"),
    (0, b"PK\x03\x04", "it is a zip archive; unpack it"),
    (0, b"<", "it is a web page or XML; download the picture again"),
    (0, b"\0\0\0\x0cjP  ", "it is JPEG 2000; save it as PNG"),
    (0, b"II*\0", "it is a kind of TIFF that Pillow cannot read; save it as 16-bit gray PNG"),
    (0, b"MM\0*", "it is a kind of TIFF that Pillow cannot read; save it as 16-bit gray PNG"),
)


class Outshone(Warning):
    """Warns that a few pixels of a 16- or 32-bit picture are far brighter than all others and are shown as white."""


def read(picture, size, name=None):
    """A picture file or a PIL image → (size, size) uint8: gray, scaled with antialiasing, padded with black.

    `picture` is a path, a binary file object or a PIL image: 8-bit gray, colour or palette, or 16- or 32-bit gray, also
    with white as 0. Transparent pixels become black; the EXIF orientation is applied. All pixels are decoded, so a
    truncated file is noticed. Raises UserError, which names the picture `name` (default: its path). Warns with
    `Outshone` if a few pixels are far brighter than all others.
    """
    if isinstance(picture, Image.Image):
        _check_depth(picture, name or "the picture")
        return _square(_gray(picture), size)

    # A file: a warning of a decompression bomb becomes an error; warnings of harmless faults are ignored
    name = name or str(picture)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # corrupt EXIF data, which Pillow then ignores
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(picture, formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise UserError(f"{name}: claims {image.width} x {image.height} pixels, more than {MAX_PIXELS:,}, "
                                    "and is refused; scale it down")
                _check_depth(image, name)
                # JPEG only: decode at 1/2, 1/4 or 1/8 of the size, but at least twice `size`. The resize does the rest.
                image.draft("L", (2 * size, 2 * size))
                return _square(_gray(image), size)
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{name}: no such file") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UserError(f"{name}: claims more than {MAX_PIXELS:,} pixels, and is refused; scale it down") from None
    except Exception as error:  # the decoders raise many kinds of errors for damaged files
        why = _what_it_is(picture, name) if isinstance(error, Image.UnidentifiedImageError) else error
        raise UserError(f"{name}: cannot be read ({' '.join(str(why).split()) or type(error).__name__})") from error


def _what_it_is(picture, name):
    """What a file is that Pillow does not recognise as a picture, with the remedy of NOT_PICTURES."""
    with nullcontext(picture) if hasattr(picture, "read") else open(picture, "rb") as file:
        file.seek(0)
        start = file.read(512)
    if Path(name).suffix.lower() in (".dcm", ".dicom"):         # old DICOM files have no mark
        start = start[:128].ljust(128) + b"DICM"
    return next((what for position, mark, what in NOT_PICTURES if start.startswith(mark, position)),
                "not a picture of a known format; save it as PNG")


def locate(root, name):
    """The path of the file `name` in the folder `root` or below; `root` may be a symbolic link.

    Raises UserError if the name or a symbolic link within `root` leads out of the folder, or to something that is not a
    file.
    """
    root = os.path.realpath(root)
    path = "" if "\0" in name else os.path.realpath(os.path.join(root, name))
    if os.path.isabs(name) or not path.startswith(root.rstrip(os.sep) + os.sep):
        raise UserError(f"{name!r}: leads out of the folder, and is refused; copy the file into the folder")
    if os.path.exists(path) and not os.path.isfile(path):
        raise UserError(f"{name!r}: not a file; give the path of a file")  # opening a pipe would wait for ever
    return Path(path)


def read_below(root, name, size):
    """`read` for the picture `name` in the folder `root`. Raises UserError, also if the name leads out of `root`."""
    return read(locate(root, name), size, name=name)


def _check_depth(image, name):
    """Raises UserError for floating-point pixels, and for 16-bit colour and 16-bit gray with alpha: of these Pillow keeps
    only the high byte of each value, so that a picture of 12-bit values becomes black.
    """
    if image.mode == "F":
        raise UserError(f"{name}: floating-point pixels have no known range; save the picture with 8 or 16 bits")
    if not image.mode.startswith("I") and any(re.search(";16[BLN]", str(tile[3]))
                                              for tile in getattr(image, "tile", ())):
        raise UserError(f"{name}: has 16-bit colour or an alpha channel of 16 bits, which Pillow cuts to 8 bits; save "
                        "it as 16-bit gray or with 8 bits")


def _gray(image):
    """The picture as 8-bit gray, turned upright by its EXIF orientation."""
    tags = getattr(image, "tag_v2", None)                       # read first: the upright copy has no TIFF tags
    if image.getexif().get(ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        return _gray_from_deep(image, tags)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image).convert("L")
    return image.convert("L")


def _gray_from_deep(image, tags=None):
    """16- and 32-bit gray → 8 bits, scaled by the bits in use: 12-bit pixels in a 16-bit file are divided by 4095, not
    65535.

    `tags` are the tags of a TIFF. Traps: Pillow's conversion clips at 255, numpy's wraps around; and Pillow inverts a
    TIFF whose 0 is white only if it has 8 bits.
    """
    pixels = np.asarray(image)
    if image.mode == "I" and tags and tags.get(SAMPLE_FORMAT, (1,)) == (1,):
        pixels = pixels.view(np.uint32)                         # Pillow reads these unsigned values as signed
    low = min(0, int(pixels.min()))
    if low:
        pixels = pixels.astype(np.int64) - low

    bits, outshone = _bits_in_use(pixels)
    top = 2 ** bits - 1
    if outshone:
        warnings.warn("a few pixels far brighter than all others are shown as white", Outshone, stacklevel=2)
        pixels = np.minimum(pixels, top)
    gray = (pixels.astype(np.float32) * (255 / top) + 0.5).astype(np.uint8)
    white_is_zero = tags is not None and tags.get(PHOTOMETRIC, 0) == 0
    return Image.fromarray(255 - gray if white_is_zero else gray)


def _bits_in_use(pixels):
    """(number of bits of a 16- or 32-bit picture's gray range, whether some pixels lie above this range).

    Choice: the range is given by the brightest pixel, and has at least 8 bits. But one hot pixel or marker of 65535 in
    a 12-bit picture would make all else nearly black. So bright pixels are not counted if they are few (at most 1 in
    100), far brighter (the range without them has at least two bits less) and separate (at most a quarter of them is
    less than twice as bright as that range's maximum). The bright tail of a clean picture is not separate.
    """
    bits = max(8, int(pixels.max()).bit_length())
    for fewer in range(8, bits - 1):
        above, far_above = (np.count_nonzero(pixels >> shift) for shift in (fewer, fewer + 1))
        if above <= pixels.size / 100 and above - far_above <= above / 4:
            return fewer, True
    return bits, False


def _square(image, size):
    """A gray picture, its longer side scaled to `size` pixels, in the middle of a black (size, size) square."""
    scale = size / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    square = np.zeros((size, size), np.uint8)
    top, left = (size - height) // 2, (size - width) // 2
    square[top:top + height, left:left + width] = image.resize((width, height), Image.Resampling.BICUBIC)
    return square


MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as in Swin's pre-training
SCALE = 1 / torch.tensor(STD).view(3, 1, 1)
SHIFT = -torch.tensor(MEAN).view(3, 1, 1) * SCALE
LEVELS = torch.arange(256) / 255
GAMMA, CONTRAST, BRIGHTNESS = 0.15, 0.1, 0.1  # largest jitter: the exponent or factor is drawn from 1 ± this


def augment(batch, crop, generator=None):
    """(B, S, S) uint8 → (B, 3, crop, crop) float32, the encoder's input: the gray picture in three channels, normalised
    with ImageNet's mean and std.

    With a torch.Generator each picture gets its own random crop, gamma, contrast and brightness; without a generator it
    gets the central crop, otherwise unchanged. Pictures are never flipped, since reports say left and right. Raises
    ValueError if crop > S.
    """
    (B, S, _), room = batch.shape, batch.shape[-1] - crop
    if room < 0:
        raise ValueError(f"a picture of {S} px has no crop of {crop} px")
    gray = torch.empty(B, 1, crop, crop)
    draws = None if generator is None else torch.rand(B, 5, generator=generator).tolist()
    for b in range(B):
        top = left = room // 2
        levels = LEVELS
        if draws is not None:
            y, x, *jitter = draws[b]
            top, left = int(y * (room + 1)), int(x * (room + 1))
            levels = _jittered(*(2 * u - 1 for u in jitter))

        # A picture has only 256 gray levels: jitter is computed for these levels, then looked up for every pixel.
        window = batch[b, top:top + crop, left:left + crop]
        torch.index_select(levels, 0, window.int().view(-1), out=gray[b].view(-1))
    return (gray * SCALE).add_(SHIFT)


def _jittered(brightness, contrast, gamma):
    """LEVELS after jitter; each argument is drawn from -1 to 1. Torchvision gets the levels as a picture of one row."""
    from torchvision.transforms.v2 import functional  # imported here, since it takes a second and only training uses it

    row = functional.adjust_gamma(LEVELS.view(1, 1, 256), 1 + GAMMA * gamma)
    row = functional.adjust_contrast(row, 1 + CONTRAST * contrast)  # about the mean of all levels
    return functional.adjust_brightness(row, 1 + BRIGHTNESS * brightness).view(256)
