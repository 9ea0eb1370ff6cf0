"""Texts in batches, as CheXbert, BERTScore and RadGraph read them."""

import torch
from torch import nn
from tqdm import tqdm


def padded_batches(encoded, pad_id, device, what, batch_size=32, progress=True):
    """Yields (texts, ids (B, T), mask (B, T)) on the device, of {text: token ids}; the mask is false at padding.

    Shortest texts first, so that a batch holds little padding. `what` is the progress bar's title; it is silent where
    nobody watches.
    """
    order = sorted(encoded, key=lambda text: len(encoded[text]))
    for start in tqdm(range(0, len(order), batch_size), what, unit="batch", disable=None if progress else True):
        texts = order[start : start + batch_size]
        ids = nn.utils.rnn.pad_sequence([torch.tensor(encoded[text]) for text in texts], batch_first=True,
                                        padding_value=pad_id)
        lengths = torch.tensor([len(encoded[text]) for text in texts])
        mask = torch.arange(ids.shape[1]) < lengths[:, None]
        yield texts, ids.to(device), mask.to(device)
