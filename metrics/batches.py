"""Texts in batches, as CheXbert, BERTScore and RadGraph read them."""

from tqdm import tqdm

from data.files import UserError
from model.bert import padded


def check_vocabulary(tokenizer, size, folder, spare=False):
    """Raises UserError where a vocabulary is torn, or another model's. With `spare` the model may know ids beyond it."""
    if len(tokenizer) > size or len(tokenizer) < size and not spare:
        raise UserError(f"{folder}: {len(tokenizer):,} pieces in the vocabulary, but the model knows {size:,}; "
                        "take the files that belong together, and whole")


def padded_batches(encoded, pad_id, device, what, batch_size=32, progress=True):
    """Yields (texts, ids (B, T), mask (B, T)) on the device, of {text: token ids}; the mask is false at padding.

    Shortest texts first, so that a batch holds little padding. `what` is the progress bar's title; it is silent where
    nobody watches.
    """
    order = sorted(encoded, key=lambda text: len(encoded[text]))
    for start in tqdm(range(0, len(order), batch_size), what, unit="batch", disable=None if progress else True):
        texts = order[start : start + batch_size]
        ids, mask = padded([encoded[text] for text in texts], pad_id)
        yield texts, ids.to(device), mask.to(device)
