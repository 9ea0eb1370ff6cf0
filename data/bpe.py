"""Byte-level BPE, RoBERTa's tokenizer: Radford et al. 2019 (GPT-2), as transformers' RobertaTokenizer has it.

A text is cut into words that keep the blank before them. The UTF-8 bytes of a word are its first pieces, each written
as one printable character ("Ġ" is the blank); the pair of neighbours that was learned first is joined, until there is
none.
"""

import re
import unicodedata
from functools import lru_cache
from pathlib import Path

from data.files import UserError, read_json_object, read_text

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")

# Words by the kinds of their characters: letters, numbers and other marks, each with one blank before it, and white
# space, of which the last character is left to the word that follows. English endings come first.
ENDING = re.compile("'(?:s|t|re|ve|m|ll|d)")
WORD = re.compile(r"b?L+|b?N+|b?o+|[bw]+(?![^bw])|[bw]+")


def byte_characters():
    """The printable character that stands for each of the 256 bytes: itself where it has one, else one from 256 on."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) if byte in printable else chr(256 + others.index(byte)) for byte in range(256)]


BYTE_CHARACTERS = byte_characters()


@lru_cache(maxsize=1 << 14)
def kind(c):
    """b: the blank, w: other white space, L: a letter, N: a number, o: anything else."""
    if c == " ":
        return "b"
    if c in "\t\n\r\v\f\x85" or unicodedata.category(c) in ("Zs", "Zl", "Zp"):
        return "w"
    category = unicodedata.category(c)[0]
    return category if category in "LN" else "o"


def words_of(text):
    """The words of a text, which joined give the text again."""
    kinds = "".join(map(kind, text))
    start = 0
    while start < len(text):
        end = (ENDING.match(text, start) or WORD.match(kinds, start)).end()
        yield text[start:end]
        start = end


class ByteBPE:
    """Text → ids between <s> and </s>, of a vocabulary {piece: id} and the pairs of pieces that join, in order."""

    def __init__(self, vocabulary, merges):
        self.ids = vocabulary
        self.ranks = {pair: rank for rank, pair in enumerate(merges)}
        missing = [piece for piece in (*SPECIAL, *BYTE_CHARACTERS) if piece not in vocabulary]
        if missing:
            raise UserError(f"the vocabulary lacks {', '.join(missing[:5])}; take RoBERTa's")
        self.cls_id, self.pad_id, self.sep_id, self.unk_id, _ = (vocabulary[name] for name in SPECIAL)
        # <mask> takes the white space before it, as the reference has it.
        self.special = re.compile(r"(\s*<mask>|<s>|<pad>|</s>|<unk>)")
        self.word_ids = lru_cache(maxsize=1 << 16)(self._word_ids)

    def __len__(self):
        return len(self.ids)

    def encode(self, text):
        """The ids of a text, between <s> and </s>; such a name in the text is that token.

        A blank is put before the text, so that its first word has the same pieces as in the midst of one.
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
            # The pair that was learned first, everywhere in the word.
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
        """Reads vocab.json and merges.txt, or tokenizer.json where they are not there. Raises UserError."""
        path = Path(folder) / "vocab.json"
        if not path.is_file() and path.with_name("tokenizer.json").is_file():
            path = path.with_name("tokenizer.json")
            vocabulary, merges = from_tokenizer_json(path)
        else:
            vocabulary, merges = read_json_object(path), read_merges(path.with_name("merges.txt"))

        # Whichever files they were, they may be anyone's
        if not isinstance(vocabulary, dict) or not all(type(i) is int for i in vocabulary.values()) or \
                not all(len(pair) == 2 and all(isinstance(piece, str) for piece in pair) for pair in merges):
            raise UserError(f"{path}: holds no byte-level BPE; take RoBERTa's")
        try:
            return cls(vocabulary, merges)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None


def read_merges(path):
    """The pairs of merges.txt, one per line. Raises UserError."""
    try:
        lines = read_text(path).split("\n")
    except OSError:
        raise UserError(f"{path}: not readable; give a folder as Hugging Face lays it out, with vocab.json and "
                        "merges.txt") from None
    return [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]


def from_tokenizer_json(path):
    """(vocabulary, pairs) out of the one file that newer tools write; neither is checked yet. Raises UserError."""
    model = read_json_object(path).get("model")
    if not isinstance(model, dict) or not isinstance(model.get("merges"), list):
        raise UserError(f"{path}: holds no byte-level BPE; take RoBERTa's")
    return model.get("vocab"), [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair)
                                for pair in model["merges"]]
