"""Pictures: from a file or a PIL image to (S, S) uint8, once; and from a batch of those to the encoder's input.

Choice: the aspect ratio is kept and nothing is cut: the longer side becomes S, the shorter is padded with black on both
sides. A short-side resize with a crop would lose a sixth of a portrait picture, and with it the apices and the
costophrenic angles that the report speaks of.
"""

import os
import re
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from data.files import UserError

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP")  # Pillow would also start Ghostscript for an EPS
MAX_PIXELS = 80_000_000  # the largest radiographs of the two data sets have 18 million
ORIENTATION = 0x0112  # the EXIF tag

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, which Swin was trained with
SCALE = 1 / torch.tensor(STD).view(3, 1, 1)
SHIFT = -torch.tensor(MEAN).view(3, 1, 1) * SCALE
LEVELS = np.arange(256, dtype=np.float32) / 255
BRIGHTNESS, CONTRAST, GAMMA = 0.1, 0.1, 0.15  # the widest jitter: ± of the range, ± factor, ± exponent


def read(picture, size, name=None):
    """A picture file or a PIL image → (size, size) uint8: gray, long side to `size` with antialiasing, black padding.

    8 bit gray, colour and palette, 16 bit gray; what is transparent is black; the EXIF orientation is obeyed. All
    pixels are decoded, so a truncated file is noticed. Raises UserError, which calls the picture `name`
    (default: its path).
    """
    if isinstance(picture, Image.Image):
        _check_depth(picture, name or "the picture")
        return _square(_gray(ImageOps.exif_transpose(picture)), size)
    name = name or str(picture)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of a corrupt EXIF, which then counts as none
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(picture, formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise UserError(f"{name}: claims {image.width} x {image.height} pixels, more than {MAX_PIXELS:,}; "
                                    "refused")
                _check_depth(image, name)
                # JPEG only: decode at 1/2, 1/4 or 1/8, never below twice the size asked for. The resize does the rest.
                image.draft("L", (2 * size, 2 * size))
                if image.getexif().get(ORIENTATION, 1) != 1:
                    image = ImageOps.exif_transpose(image)
                return _square(_gray(image), size)
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{name}: no such file") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UserError(f"{name}: claims more than {MAX_PIXELS:,} pixels; refused") from None
    except Exception as error:  # a damaged file can raise nearly anything in a decoder
        why = "no picture of a known format" if isinstance(error, Image.UnidentifiedImageError) else error
        raise UserError(f"{name}: cannot be read ({' '.join(str(why).split()) or type(error).__name__})") from error


def locate(root, name):
    """The path of the file `name` below the folder `root`, which may itself be a symbolic link.

    Raises UserError where the name or a symbolic link on the way leads out of the folder.
    """
    root = os.path.realpath(root)
    path = "" if "\0" in name else os.path.realpath(os.path.join(root, name))
    if os.path.isabs(name) or not path.startswith(root.rstrip(os.sep) + os.sep):
        raise UserError(f"{name!r}: leads out of the folder; refused (copy the file into the folder)")
    if os.path.exists(path) and not os.path.isfile(path):
        raise UserError(f"{name!r}: not a file")  # opening a pipe would wait for ever
    return Path(path)


def read_below(root, name, size):
    """`read` for the picture `name` of the folder `root`, never outside it."""
    return read(locate(root, name), size, name=name)


def _check_depth(image, name):
    """UserError for 16-bit colour or gray with alpha: Pillow keeps the high byte, and 12-bit values turn black."""
    if not image.mode.startswith("I") and any(re.search(";16[BLN]", str(tile[3]))
                                              for tile in getattr(image, "tile", ())):
        raise UserError(f"{name}: has 16 bits a colour or an alpha, which cannot be read whole; save it as 16-bit gray "
                        "or with 8 bits")


def _gray(image):
    if image.mode.startswith("I"):
        return _gray_from_deep(image)
    if image.mode == "F":
        raise UserError("floating-point pixels have no known range; save the picture with 8 or 16 bits")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image).convert("L")
    return image.convert("L")


def _gray_from_deep(image):
    """16- and 32-bit gray → 8 bit by the bits in use: 12-bit pixels in a 16-bit file are divided by 4095, not 65535.

    Pillow's own conversion clips at 255, numpy's wraps.
    """
    pixels = np.asarray(image)
    low = min(0, int(pixels.min()))
    top = 2 ** max(8, (int(pixels.max()) - low).bit_length()) - 1
    return Image.fromarray(((pixels.astype(np.float32) - low) * (255 / top) + 0.5).astype(np.uint8))


def _square(image, size):
    scale = size / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    square = np.zeros((size, size), np.uint8)
    top, left = (size - height) // 2, (size - width) // 2
    square[top:top + height, left:left + width] = image.resize((width, height), Image.Resampling.BICUBIC)
    return square


def augment(batch, crop, generator=None):
    """(B, S, S) uint8 → (B, 3, crop, crop) float32 for the encoder: gray in three channels, ImageNet's mean and std.

    With a torch.Generator each picture gets its own random crop, brightness, contrast and gamma; without one the centre
    crop, unchanged. Never flipped: left and right are in the text.
    """
    (B, S, _), room = batch.shape, batch.shape[-1] - crop
    if room < 0:
        raise ValueError(f"a picture of {S} px has no crop of {crop} px")
    images = torch.empty(B, 3, crop, crop)
    draws = None if generator is None else torch.rand(B, 5, generator=generator).tolist()
    for b in range(B):
        top = left = room // 2
        table = LEVELS
        if draws is not None:
            y, x, *jitter = draws[b]
            top, left = int(y * (room + 1)), int(x * (room + 1))
            brightness, contrast, gamma = (2 * u - 1 for u in jitter)
            table = LEVELS ** (1 + GAMMA * gamma)
            table = (table - 0.5) * (1 + CONTRAST * contrast) + (0.5 + BRIGHTNESS * brightness)
            table = np.clip(table, 0, 1)
        # A pixel has 256 values: the jitter is worked out for those and then looked up.
        window = batch[b, top:top + crop, left:left + crop]
        gray = torch.from_numpy(table).index_select(0, window.int().view(-1)).view(crop, crop)
        torch.mul(gray, SCALE, out=images[b]).add_(SHIFT)
    return images
