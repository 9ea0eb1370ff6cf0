"""Batches of texts for the networks of CheXbert, BERTScore and RadGraph."""

from tqdm import tqdm

from data.files import UserError
from model.bert import padded


def check_vocabulary(tokenizer, size, folder, spare=False):
    """Raises UserError if the vocabulary's size is not the model's. `spare`: the model may have more embeddings."""
    if len(tokenizer) > size or len(tokenizer) < size and not spare:
        raise UserError(f"{folder}: {len(tokenizer):,} pieces in the vocabulary, but the model knows {size:,}; "
                        "use complete files of one and the same model")


def padded_batches(encoded, pad_id, device, what, batch_size=32, progress=True):
    """{text: token ids} → yields (texts, ids (B, T), mask (B, T)), on `device`; the mask is false at padding.

    Shortest texts come first, so that a batch holds little padding. `what` is the title of the progress bar, which is
    shown on a terminal only.
    """
    order = sorted(encoded, key=lambda text: len(encoded[text]))
    for start in tqdm(range(0, len(order), batch_size), what, unit="batch", disable=None if progress else True):
        texts = order[start : start + batch_size]
        ids, mask = padded([encoded[text] for text in texts], pad_id)
        yield texts, ids.to(device), mask.to(device)
