"""--cache-features: the output of stage 2's frozen image encoder for every picture, computed once, not in every epoch.

The pictures are then always the same, without the random crops and jitter of training.
"""

import numpy as np
import torch

from data.images import augment


class FeatureFile:
    """Tokens of every picture of a data set, (pictures, n, d), in one memory-mapped file that all processes share."""

    def __init__(self, path, shape, dtype):
        self.path, self.shape, self.dtype = path, shape, dtype
        self.tokens = torch.from_file(str(path), shared=True, size=int(np.prod(shape)), dtype=dtype).view(shape)

    def __getitem__(self, rows):
        return self.tokens[rows]

    def __reduce__(self):               # so that loader processes map the file, and do not copy the tensor
        return FeatureFile, (self.path, self.shape, self.dtype)


@torch.no_grad()
def cache_features(model, prepared, path, processes, batch_size=64):
    """Encodes all pictures of the train and val split → `FeatureFile` in `path`.

    Each process encodes its share. The file holds n · d numbers per picture: 100 kB at the paper's sizes, in bf16.
    """
    rows = [row for split in ("train", "val") for study in prepared.split(split) for row in study["views"]]
    device, dtype = model.mapper.weight.device, model.image_projection.weight.dtype

    def encoded(rows):
        images = augment(prepared.pictures({"id": f"with pictures {rows}", "views": rows}), model.pictures["crop"])
        return model.view_tokens(images[None].to(device))[0]

    shape = (len(prepared.images), *encoded(rows[:1]).shape[1:])
    if processes.rank == 0:
        with open(path, "wb") as file:
            file.truncate(int(np.prod(shape)) * dtype.itemsize)
    processes.barrier()

    features = FeatureFile(path, shape, dtype)
    mine = rows[processes.rank::processes.world]
    for start in range(0, len(mine), batch_size):
        some = mine[start:start + batch_size]
        features.tokens[some] = encoded(some).to("cpu", dtype)
    processes.barrier()
    return features
