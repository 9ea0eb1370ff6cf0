"""The smallest whole model: the real classes at toy size, and a toy data set. Used by tests, never by the program."""

import json

import numpy as np
import torch
from PIL import Image

import trrg
from data.prompts import clue_prompts
from data.tokenizers import SentencePiece, WordPiece
from model.bert import Bert, BertConfig
from model.mistral import Mistral, MistralConfig
from model.swin import Swin, SwinConfig

REPORTS = [
    "The heart is normal in size. There is a small right pleural effusion. No pneumothorax.",
    "Moderate cardiomegaly. The lungs are clear. No pleural effusion.",
    "There is a large left pneumothorax. The heart is normal in size.",
    "Heart size is normal. No pneumothorax. The lungs are clear.",
]
CROP, SIZE = 28, 32
PICTURES = {"size": SIZE, "crop": CROP}


def words():
    return WordPiece.train(REPORTS + [text for prompts in clue_prompts() for text in prompts], size=400, lower_case=True)


def pieces():
    return SentencePiece.train(REPORTS * 4 + [trrg.INSTRUCTION], size=340)


def swin():
    return Swin(SwinConfig(image_size=CROP, patch_size=4, window_size=7, embed_dim=8, depths=(2,), num_heads=(2,)))


def bert(vocab_size):
    return Bert(BertConfig(vocab_size=vocab_size, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                           intermediate_size=32, max_position_embeddings=64))


def mistral(vocab_size):
    return Mistral(MistralConfig(vocab_size=vocab_size, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                                 num_attention_heads=2, num_key_value_heads=1, head_dim=16, sliding_window=None))


def alignment(**config):
    torch.manual_seed(0)
    vocabulary = words()
    return trrg.Alignment(swin=swin(), bert=bert(len(vocabulary)), wordpiece=vocabulary,
                          config=trrg.AlignmentConfig(d=16, **config), pictures=PICTURES).eval()


def model(**config):
    aligned = alignment()
    tokenizer = pieces()
    ours = trrg.STEERED if config.get("variant") == "steered" else {}
    config = trrg.TRRGConfig(**{**ours, "queries": 4, "heads": 2, "lora_rank": 2, "lora_dropout": 0.0, **config})
    return trrg.from_alignment(aligned, mistral(len(tokenizer)), tokenizer, config, pictures=PICTURES,
                               decoding={"beams": 1, "max_new_tokens": 8}).eval()


def batch(studies=2, views=1, seed=0):
    return torch.randn(studies, views, 3, CROP, CROP, generator=torch.Generator().manual_seed(seed))


def write_weights(folder, seed=0):
    """swin/, bert/ and mistral/ in Hugging Face's layout."""
    torch.manual_seed(seed)
    vocabulary, tokenizer = words(), pieces()
    swin().save_pretrained(folder / "swin")
    bert(len(vocabulary)).save_pretrained(folder / "bert")
    vocabulary.save_pretrained(folder / "bert")
    mistral(len(tokenizer)).save_pretrained(folder / "mistral")
    tokenizer.save_pretrained(folder / "mistral")


def write_data(folder, train=12, val=4, test=4, views=2, seed=0):
    """A prepared data set of random pictures; report i of a split is REPORTS[i % 4]."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    total = train + val + test
    np.save(folder / "images.npy", rng.integers(0, 256, (total * views, SIZE, SIZE), dtype=np.uint8))
    rows = [{"id": f"{split}-{i}", "split": split, "report": REPORTS[i % 4]}
            for split, count in (("train", train), ("val", val), ("test", test)) for i in range(count)]
    with open(folder / "studies.jsonl", "w", encoding="utf-8") as file:
        for number, row in enumerate(rows):
            file.write(json.dumps({**row, "views": list(range(number * views, (number + 1) * views))}) + "\n")
    (folder / "manifest.json").write_text(json.dumps({"counts": {"train": train, "val": val, "test": test}, "options": {}}))


def write_run(folder, prompts_per_disease=0, **header):
    """data/, ckpt.safetensors with its base inside, stage1.safetensors, frontal.png and lateral.jpg."""
    write_data(folder / "data", test=5)
    built, aligned = model(), alignment(prompts_per_disease=prompts_per_disease)
    header = {"data": str(folder / "data"), "preset": "demo", **header}
    trrg.save(folder / "ckpt.safetensors", built, {**header, "base": {"folder": "nowhere"}}, embed_base=True)
    trrg.save_alignment(folder / "stage1.safetensors", aligned, header)
    rng = np.random.default_rng(0)
    for name, shape in (("frontal.png", (40, 50)), ("lateral.jpg", (50, 40, 3))):
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(folder / name)
