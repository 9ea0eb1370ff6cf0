"""Byte-level BPE, RoBERTa's tokenizer. Source: Radford et al. 2019 (GPT-2); equal to transformers' RobertaTokenizer.

A text is split into words, each with the blank before it. The first pieces of a word are its UTF-8 bytes, each written
as one printable character ("Ġ" is the blank). Then neighbouring pieces are joined, always the pair that was learned
first in training, until no neighbours are a learned pair.
"""

import re
import unicodedata
from functools import lru_cache
from pathlib import Path

from data.files import UserError, read_json_object, read_text

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")

# A word is an English ending, or a run of letters, of numbers or of other marks, each with at most one blank before it,
# or a run of white space, whose last character is left for the next word. WORD matches the codes of `kind`.
ENDING = re.compile("'(?:s|t|re|ve|m|ll|d)")
WORD = re.compile(r"b?L+|b?N+|b?o+|[bw]+(?![^bw])|[bw]+")


def byte_characters():
    """256 printable characters, one per byte: the byte's own character if printable, else a code point from 256 on."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) if byte in printable else chr(256 + others.index(byte)) for byte in range(256)]


BYTE_CHARACTERS = byte_characters()


@lru_cache(maxsize=1 << 14)
def kind(c):
    """The kind of a character: b blank, w other white space, L letter, N number, o anything else."""
    if c == " ":
        return "b"
    if c in "\t\n\r\v\f\x85" or unicodedata.category(c) in ("Zs", "Zl", "Zp"):
        return "w"
    category = unicodedata.category(c)[0]
    return category if category in "LN" else "o"


def words_of(text):
    """Yields the words of a text; joined, they are the text again."""
    kinds = "".join(map(kind, text))
    start = 0
    while start < len(text):
        end = (ENDING.match(text, start) or WORD.match(kinds, start)).end()
        yield text[start:end]
        start = end


class ByteBPE:
    """The tokenizer of a vocabulary {piece: id} and a list of merges (pairs of pieces, in the order of joining).

    Raises UserError if the vocabulary lacks a special token or a byte.
    """

    def __init__(self, vocabulary, merges):
        self.ids = vocabulary
        self.ranks = {pair: rank for rank, pair in enumerate(merges)}
        missing = [piece for piece in (*SPECIAL, *BYTE_CHARACTERS) if piece not in vocabulary]
        if missing:
            raise UserError(f"the vocabulary lacks {', '.join(missing[:5])}; use RoBERTa's files")
        self.cls_id, self.pad_id, self.sep_id, self.unk_id, _ = (vocabulary[name] for name in SPECIAL)
        # <mask> includes the white space before it, as in the reference.
        self.special = re.compile(r"(\s*<mask>|<s>|<pad>|</s>|<unk>)")
        self.word_ids = lru_cache(maxsize=1 << 16)(self._word_ids)

    def __len__(self):
        return len(self.ids)

    def encode(self, text):
        """The ids of a text, between <s> and </s>. The name of a special token in the text becomes that token.

        A blank is put before the text, so that its first word has the same pieces as within a text.
        """
        if text and not text[0].isspace():
            text = " " + text
        ids = []
        for part in self.special.split(text):
            if part.strip() in SPECIAL:
                ids.append(self.ids[part.strip()])
            else:
                for word in words_of(part):
                    ids.extend(self.word_ids(word))
        return [self.cls_id, *ids, self.sep_id]

    def _word_ids(self, word):
        pieces = [BYTE_CHARACTERS[byte] for byte in word.encode("utf-8", "replace")]
        while len(pieces) > 1:
            # Join the pair that was learned first, everywhere in the word.
            pair = min(zip(pieces, pieces[1:]), key=lambda pair: self.ranks.get(pair, len(self.ranks)))
            if pair not in self.ranks:
                break
            joined, i = [], 0
            while i < len(pieces):
                both = tuple(pieces[i : i + 2]) == pair
                joined.append("".join(pair) if both else pieces[i])
                i += 2 if both else 1
            pieces = joined
        return tuple(self.ids.get(piece, self.unk_id) for piece in pieces)

    @classmethod
    def from_pretrained(cls, folder):
        """Reads vocab.json and merges.txt, or tokenizer.json if there is no vocab.json. Raises UserError."""
        path = Path(folder) / "vocab.json"
        if not path.is_file() and path.with_name("tokenizer.json").is_file():
            path = path.with_name("tokenizer.json")
            vocabulary, merges = from_tokenizer_json(path)
        else:
            vocabulary, merges = read_json_object(path), read_merges(path.with_name("merges.txt"))

        # Files of another tokenizer are refused
        if not isinstance(vocabulary, dict) or not all(type(i) is int for i in vocabulary.values()) or \
                not all(len(pair) == 2 and all(isinstance(piece, str) for piece in pair) for pair in merges):
            raise UserError(f"{path}: not a byte-level BPE; use RoBERTa's files")
        try:
            return cls(vocabulary, merges)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None


def read_merges(path):
    """The pairs in merges.txt, one per line. Raises UserError if the file cannot be read."""
    try:
        lines = read_text(path).split("\n")
    except OSError:
        raise UserError(f"{path}: not readable; give a folder in Hugging Face's layout, with vocab.json and "
                        "merges.txt") from None
    return [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]


def from_tokenizer_json(path):
    """(vocabulary, merges) from tokenizer.json, which newer versions of transformers write; the values are not checked.
    Raises UserError.
    """
    model = read_json_object(path).get("model")
    if not isinstance(model, dict) or not isinstance(model.get("merges"), list):
        raise UserError(f"{path}: not a byte-level BPE; use RoBERTa's files")
    return model.get("vocab"), [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair)
                                for pair in model["merges"]]
