"""Times what the README promises about data, by hand: python -m tests.bench.data [--pictures 40] [--rows 370000]

1. Preparing full-size radiographs: data.images.read against Pillow's and torchvision's plain ways, one core; then the
   whole command `python -m data.prepare`, by the clock, with one worker and with two.
2. Training's reading: random rows of 370,000 pictures (a sparse file), with augmentation; the jitter alone, next to
   torchvision's on every pixel; memory after many of them; and whole visits of either stage, one at a time.
3. Reading alone: random rows of a warm file of 500 MB, next to a memory map of it.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg, read_file
from torchvision.transforms.v2 import functional

from data.dataset import PictureFile, Prepared, Visits
from data.images import BRIGHTNESS, CONTRAST, GAMMA, MEAN, STD, augment, read
from tests.bench import record

BATCH = 2              # pictures of a visit of stage 2


def radiograph(rng, height=3056, width=2544):
    """Soft shapes with grain: as JPEG of quality 95 it has the size of a MIMIC-CXR-JPG file, about 1.5 MB."""
    soft = Image.fromarray(rng.integers(0, 256, (13, 11), np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    grain = rng.normal(0, 2.2, (height, width))
    return Image.fromarray(np.clip(np.asarray(soft) + grain, 0, 255).astype(np.uint8))


def pillow_way(path):
    """convert to RGB, short side to 256, crop: what R2Gen's loader does with every picture in every epoch"""
    image = Image.open(path).convert("RGB")
    scale = 256 / min(image.size)
    return np.asarray(image.resize([round(side * scale) for side in image.size], Image.Resampling.BILINEAR))


def torchvision_way(path):
    return functional.resize(decode_jpeg(read_file(str(path)), mode=ImageReadMode.RGB), [256], antialias=True)


def torchvision_pil_way(path):
    return functional.resize(functional.to_image(Image.open(path).convert("RGB")), [256], antialias=True)


def jittered(picture, draws, crop):
    """What data.images.augment draws, by torchvision on every pixel of the crop."""
    (y, x, *jitter), room = draws, picture.shape[-1] - crop
    brightness, contrast, gamma = (2 * u - 1 for u in jitter)
    picture = functional.crop(picture, int(y * (room + 1)), int(x * (room + 1)), crop, crop)
    picture = functional.adjust_gamma(picture, 1 + GAMMA * gamma)
    picture = functional.adjust_contrast(picture, 1 + CONTRAST * contrast)
    return functional.adjust_brightness(picture, 1 + BRIGHTNESS * brightness)


def torchvision_on_floats(batch, crop, generator):
    pictures = functional.to_dtype(batch[:, None], torch.float32, scale=True)
    draws = torch.rand(len(batch), 5, generator=generator).tolist()
    pictures = torch.stack([jittered(picture, drawn, crop) for picture, drawn in zip(pictures, draws)])
    return functional.normalize(pictures.expand(-1, 3, -1, -1), MEAN, STD)


def torchvision_on_bytes(batch, crop, generator):
    draws = torch.rand(len(batch), 5, generator=generator).tolist()
    pictures = torch.stack([jittered(picture[None], drawn, crop) for picture, drawn in zip(batch, draws)])
    pictures = functional.to_dtype(pictures, torch.float32, scale=True)
    return functional.normalize(pictures.expand(-1, 3, -1, -1), MEAN, STD)


def rate(call, arguments, rounds=3):
    """The best of several rounds, calls a second of this process's time: other programs' load counts least."""
    best = 0.0
    for _ in range(rounds):
        start = time.process_time()
        for argument in arguments:
            call(argument)
        best = max(best, len(arguments) / (time.process_time() - start))
    return best


def memory():
    """(private, file-backed) resident megabytes"""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return tuple(int(fields[name].split()[0]) // 1024 for name in ("RssAnon", "RssFile"))


def bench_preparing(folder, pictures, figures):
    rng = np.random.default_rng(0)
    paths = []
    (folder / "images").mkdir()
    for number in range(pictures):
        paths.append(folder / "images" / f"{number}.jpg")
        radiograph(rng).save(paths[-1], quality=95)
    megabytes = sum(path.stat().st_size for path in paths) / pictures / 1e6
    print(f"{pictures} gray JPEGs of 2544 x 3056, {megabytes:.2f} MB each, to 256 px: pictures a second and core")
    for name, call in (("data.images.read", lambda path: read(path, 256)), ("Pillow, RGB first", pillow_way),
                       ("torchvision decode_jpeg", torchvision_way), ("torchvision over Pillow", torchvision_pil_way)):
        figures[name] = rate(call, paths)
        print(f"  {figures[name]:8.1f}  {name}")
    entries = [{"id": path.stem, "report": "Lungs clear.", "image_path": [path.name]} for path in paths]
    (folder / "annotation.json").write_text(json.dumps({"train": entries, "val": [], "test": []}))
    print(f"The whole command on them, by the clock (load {os.getloadavg()[0]:.1f} of {os.cpu_count()} cores), the "
          "best of three: seconds, and pictures a second with and without its start")
    for options in (["--text-only"], ["--workers", "1"], ["--workers", "2"]):
        seconds = []
        for _ in range(3):
            start = time.perf_counter()
            command = [sys.executable, "-m", "data.prepare", "r2gen", "--raw", folder, "--out", folder / "set"]
            subprocess.run([*command, *options], check=True, capture_output=True)
            seconds.append(time.perf_counter() - start)
            shutil.rmtree(folder / "set")
        figures[f"data.prepare {' '.join(options)}, s"] = min(seconds)
        if options == ["--text-only"]:
            alone = min(seconds)
            print(f"  {alone:8.1f}  its start alone (--text-only)")
        else:
            print(f"  {min(seconds):8.1f}  {' '.join(options)}: {pictures / min(seconds):.1f} and "
                  f"{pictures / (min(seconds) - alone):.1f}")


def picture_file(file, rows):
    pictures = np.empty((len(rows), *file.shape[1:]), np.uint8)
    for row, picture in zip(rows, pictures):
        file.read(row * picture.size, picture)
    return pictures


def bench_training(folder, rows, figures):
    with open(folder / "images.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "|u1", "fortran_order": False, "shape": (rows, 256, 256)})
        file.truncate(file.tell() + rows * 256 * 256)
    images = PictureFile(folder / "images.npy")
    rng = np.random.default_rng(0)
    generator = torch.Generator().manual_seed(0)
    print(f"{rows:,} pictures of 256 px ({rows * 65536 / 1e9:.1f} GB, sparse), crops of 224: pictures per second "
          "and core")
    for size in (1, 2, 8, 32):
        batches = [rng.integers(0, rows, size).tolist() for _ in range(max(1, 2048 // size))]

        def visit(batch):
            return augment(torch.from_numpy(picture_file(images, batch)), 224, generator)

        visit(batches[0])
        figures[f"{size} at a time"] = rate(visit, batches, rounds=5) * size
        print(f"  {figures[f'{size} at a time']:8.0f}  {size} at a time with augmentation")
    print(f"The jitter alone, {BATCH} pictures of 256 px: pictures per second and core")
    batch = torch.from_numpy(picture_file(images, rng.integers(0, rows, BATCH).tolist()))
    for name, jitter in (("data.images.augment: torchvision on 256 levels, looked up", augment),
                         ("torchvision on every pixel, float32", torchvision_on_floats),
                         ("torchvision on every pixel, uint8", torchvision_on_bytes)):
        figures[name] = rate(lambda batch: jitter(batch, 224, generator), [batch] * 50, rounds=5) * BATCH
        print(f"  {figures[name]:8.0f}  {name}")
    before = memory()
    for step in range(1, 4):
        for batch in rng.integers(0, rows, (2000, 8)).tolist():
            visit(batch)
        private, mapped_pages = (after - earlier for after, earlier in zip(memory(), before))
        figures[f"after {step * 16_000} reads, MB"] = private
        print(f"  after {step * 16_000:,} more: {private:+d} MB private, {mapped_pages:+d} MB of files' pages")
    report = "The heart is normal in size. The lungs are clear. No effusion or pneumothorax. There is a 4 mm nodule."
    studies = [{"id": str(n), "split": "train", "report": report, "views": [2 * n, 2 * n + 1]} for n in range(2000)]
    (folder / "studies.jsonl").write_text("".join(json.dumps(study) + "\n" for study in studies))
    (folder / "manifest.json").write_text("{}")
    for stage, views in ((1, 1), (2, 2)):
        visits = Visits(Prepared(folder), studies, stage, 224, seed=0)
        figures[f"visits of stage {stage}"] = rate(visits.__getitem__, [(0, n) for n in range(2000)]) * views
        print(f"  {figures[f'visits of stage {stage}']:8.0f}  in visits of stage {stage}, {views} a visit")
    print(f"  peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024:,} MB resident")


def mapped(file, rows):
    return np.stack([file[row] for row in rows])


def bench_reading(folder, figures, rows=8000, studies=4000, rounds=9):
    path = folder / "warm.npy"
    np.save(path, np.random.default_rng(0).integers(0, 256, (rows, 256, 256), np.uint8))
    print(f"Random rows of a warm file of {path.stat().st_size / 1e6:.0f} MB: microseconds per study, "
          f"median of {rounds} rounds")
    for views in (1, 2):
        drawn = np.random.default_rng(1).integers(0, rows, (studies, views)).tolist()
        ways = [(mapped, np.load(path, mmap_mode="r")), (picture_file, PictureFile(path))]
        times = {call: [] for call, _ in ways}
        for _ in range(rounds):
            for call, file in ways:
                start = time.process_time()
                for one in drawn:
                    call(file, one)
                times[call].append((time.process_time() - start) / studies * 1e6)
        for call, _ in ways:
            figures[f"{views} views, {call.__name__}, µs"] = statistics.median(times[call])
            print(f"  {statistics.median(times[call]):8.1f}  {views} views, {call.__name__}")
    path.unlink()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=40)
    parser.add_argument("--rows", type=int, default=370_000)
    parser.add_argument("--record", action="store_true", help=record.HELP)
    args = parser.parse_args()
    torch.set_num_threads(1)
    figures = {}
    with tempfile.TemporaryDirectory() as name:
        bench_preparing(Path(name), args.pictures, figures)
        bench_training(Path(name), args.rows, figures)
        bench_reading(Path(name), figures)
    record.add(args, figures)
