"""Text to token ids and back: WordPiece for BERT, SentencePiece for Mistral.

Both are made from the bytes of their published file (`vocab.txt`, `tokenizer.model`), which a checkpoint can contain.
A model may have more ids than its tokenizer has pieces, as chat models do. Such ids are decoded as nothing.
"""

import collections
import io
import json
import re
import unicodedata
from functools import lru_cache
from pathlib import Path

import sentencepiece

from data.files import UserError, read_json_object, refuse_pointer, whole_file

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def read_bytes(folder, name):
    """The bytes of a tokenizer's file. Raises UserError if it can't be read, or is a Git LFS pointer."""
    path = Path(folder) / name
    try:
        refuse_pointer(path)
        return path.read_bytes()
    except OSError:
        raise UserError(f"{path}: not readable; give a folder in Hugging Face's layout, with {name}") from None


class WordPiece:
    """BERT's tokenizer. Source: Devlin et al. 2019; equal to transformers' BertTokenizer."""

    def __init__(self, vocab, lower_case):
        """vocab: the bytes of vocab.txt, one token per line. lower_case: lower-case the text and strip its accents.

        Raises UserError if vocab is not UTF-8 or lacks a special token.
        """
        self.vocab_bytes, self.lower_case = bytes(vocab), bool(lower_case)
        try:
            # Not str.splitlines, which also splits at U+2028 and similar characters that may be tokens.
            lines = io.StringIO(self.vocab_bytes.decode("utf-8-sig"), newline=None).readlines()
        except UnicodeDecodeError:
            raise UserError("vocab.txt: not UTF-8; download it again") from None
        self.tokens = [line.rstrip("\n") for line in lines]
        self.ids = {token: i for i, token in enumerate(self.tokens)}
        missing = [token for token in SPECIAL if token not in self.ids]
        if missing:
            raise UserError(f"vocab.txt: lacks {', '.join(missing)}; download it again")
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = (self.ids[token] for token in SPECIAL)
        self.special = re.compile("(" + "|".join(map(re.escape, SPECIAL)) + ")")
        self.word_ids = lru_cache(maxsize=2**16)(self._word_ids)

    def __len__(self):
        return len(self.tokens)

    def encode(self, text, special=True):
        """The ids of a text, between [CLS] and [SEP] if `special`. A special token's name in the text is that token."""
        ids = []
        for part in self.special.split(text):
            if part in SPECIAL:
                ids.append(self.ids[part])
            else:
                for word in basic_tokens(part, self.lower_case):
                    ids.extend(self.word_ids(word))
        return [self.cls_id, *ids, self.sep_id] if special else ids

    def _word_ids(self, word):
        """Greedy longest match from the left; [UNK] for a word of over 100 characters or one that no pieces form."""
        if len(word) > 100:
            return (self.unk_id,)
        ids, start = [], 0
        while start < len(word):
            for end in range(len(word), start, -1):
                piece = self.ids.get(("##" if start else "") + word[start:end])
                if piece is not None:
                    break
            else:
                return (self.unk_id,)
            ids.append(piece)
            start = end
        return tuple(ids)

    def decode(self, ids):
        """The text of ids, without special tokens; pieces are joined to words, words separated by one blank."""
        dropped = {self.pad_id, self.cls_id, self.sep_id, self.mask_id, self.unk_id}
        return " ".join(self.tokens[i] for i in ids if i not in dropped and i < len(self)).replace(" ##", "")

    @classmethod
    def from_pretrained(cls, folder):
        """Reads vocab.txt, or tokenizer.json if there is no vocab.txt; and tokenizer_config.json, if any.

        If neither json file says whether text is lower-cased, it is lower-cased, as in the reference. This applies to
        Bio_ClinicalBERT, which has no such file, although its vocabulary is cased. Raises UserError.
        """
        folder = Path(folder)
        alone = (folder / "tokenizer.json").is_file() and not (folder / "vocab.txt").is_file()
        vocab, lower_case = from_tokenizer_json(folder / "tokenizer.json") if alone \
            else (read_bytes(folder, "vocab.txt"), True)

        path = folder / "tokenizer_config.json"
        if path.is_file():
            config = read_json_object(path)
            lower_case = config.get("do_lower_case", lower_case)
            if config.get("strip_accents") not in (None, lower_case) or not config.get("tokenize_chinese_chars", True):
                raise UserError(f"{path}: strip_accents or tokenize_chinese_chars differs from BERT's own value; use "
                                "another model")
        try:
            return cls(vocab, lower_case)
        except UserError as error:
            raise UserError(f"{folder}: {error}") from None

    def save_pretrained(self, folder):
        """Writes vocab.txt and tokenizer_config.json."""
        with whole_file(Path(folder) / "vocab.txt", "wb") as file:
            file.write(self.vocab_bytes)
        with whole_file(Path(folder) / "tokenizer_config.json") as file:
            json.dump({"tokenizer_class": "BertTokenizer", "do_lower_case": self.lower_case}, file, indent=2)

    @classmethod
    def train(cls, texts, size, lower_case=True):
        """A small vocabulary for the demo: every character, alone and as a continuation, then the most frequent words,
        at most `size` tokens unless the characters alone are more.

        The published vocabularies were trained in a more complex way; this way is enough for texts with few words.
        """
        counts = collections.Counter(word for text in texts for word in basic_tokens(text, lower_case))
        characters = sorted({character for word in counts for character in word})
        tokens = [*SPECIAL, *characters, *(f"##{character}" for character in characters)]
        frequent = sorted(counts, key=lambda word: (-counts[word], word))
        tokens += [word for word in frequent if len(word) > 1][:max(0, size - len(tokens))]
        return cls("".join(f"{token}\n" for token in tokens).encode(), lower_case)


def from_tokenizer_json(path):
    """(the bytes of a vocab.txt, lower_case) from tokenizer.json, which newer versions of transformers write. Raises
    UserError if it differs from BERT's WordPiece.
    """
    json_object = read_json_object(path)
    try:
        model, normalizer = json_object["model"], json_object["normalizer"]
        tokens, lower_case = sorted(model["vocab"], key=model["vocab"].get), normalizer["lowercase"]
        like_bert = (
            model["type"] == "WordPiece" and model["unk_token"] == "[UNK]"
            and model["continuing_subword_prefix"] == "##" and model["max_input_chars_per_word"] == 100
            and normalizer["type"] == "BertNormalizer" and normalizer["strip_accents"] in (None, lower_case)
            and normalizer["clean_text"] and normalizer["handle_chinese_chars"]
            and json_object["pre_tokenizer"]["type"] == "BertPreTokenizer"
            and [model["vocab"][token] for token in tokens] == list(range(len(tokens)))
            and not any("\n" in token or "\r" in token for token in tokens))
        vocab = "".join(f"{token}\n" for token in tokens).encode()
    except (KeyError, TypeError, AttributeError, UnicodeEncodeError):
        like_bert = False
    if not like_bert:
        raise UserError(f"{path}: not BERT's WordPiece; use a BERT model, or put its vocab.txt into the folder")
    return vocab, lower_case


def basic_tokens(text, lower_case):
    """The words and single punctuation marks of a text, cleaned: the first stage of BERT's tokenizer."""
    cleaned = "".join(map(clean, text))
    if lower_case:
        cleaned = "".join(c for c in unicodedata.normalize("NFD", cleaned) if unicodedata.category(c) != "Mn")
        cleaned = "".join(c.lower() for c in cleaned)      # not cleaned.lower(), which gives a final sigma another form
    return "".join(f" {c} " if is_punctuation(c) else c for c in cleaned).split()


@lru_cache(maxsize=2**16)
def clean(c):
    """A character after BERT's cleaning: "" for a control character, a blank for white space, and a Chinese character
    with blanks around it, as a word of its own.
    """
    if c in "\t\n\r":
        return " "
    # Unassigned code points are kept, as in the reference, although the script of BERT's authors drops them.
    if c in "\0\ufffd" or unicodedata.category(c) in ("Cc", "Cf", "Co", "Cs"):
        return ""
    if c.isspace():
        return " "
    return f" {c} " if is_chinese(ord(c)) else c


def is_chinese(code):
    """Whether a code point is in the CJK blocks that the reference lists; these do not include Hangul and kana."""
    return any(first <= code <= last for first, last in (
        (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F),
        (0x2B920, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F)))


@lru_cache(maxsize=2**16)
def is_punctuation(c):
    """Whether a character is Unicode punctuation, or ASCII and no letter, digit, blank or control ("$", "^", "`")."""
    return 33 <= ord(c) <= 47 or 58 <= ord(c) <= 64 or 91 <= ord(c) <= 96 or 123 <= ord(c) <= 126 \
        or unicodedata.category(c).startswith("P")


class SentencePiece:
    """Mistral's tokenizer: the SentencePiece library with the published `tokenizer.model`.

    The marks of an instruction, [INST] and [/INST], are ordinary text up to Mistral-Instruct v0.2, and tokens of their
    own from v0.3 on. The file decides which.
    """

    def __init__(self, model):
        """model: the bytes of tokenizer.model. Raises UserError if it's no SentencePiece model or lacks <s> or </s>."""
        self.model_bytes = bytes(model)
        try:
            self.processor = sentencepiece.SentencePieceProcessor(model_proto=self.model_bytes)
        except (RuntimeError, TypeError):
            raise UserError("tokenizer.model: not a SentencePiece model; download it again") from None
        self.bos_id, self.eos_id = self.processor.bos_id(), self.processor.eos_id()
        if self.bos_id < 0 or self.eos_id < 0:
            raise UserError("tokenizer.model: has no <s> or no </s>; use Mistral's file")
        ids = {mark: self.processor.piece_to_id(mark) for mark in ("[INST]", "[/INST]")}
        self.marks = {mark: i for mark, i in ids.items() if self.processor.is_control(i)}

    def __len__(self):
        return self.processor.vocab_size()

    def encode(self, text, special=True):
        """The ids of a text, after <s> if `special`. A blank is put before the text, as in Mistral's reference.

        "<s>" and "</s>" in the text are ordinary text. If the marks are tokens, blanks beside them are removed, and one
        blank is put before each text between marks.
        """
        ids = [self.bos_id] if special else []
        for part in re.split(r" *(\[/?INST\]) *", text) if self.marks else [text]:
            ids += [self.marks[part]] if part in self.marks else self.processor.encode(part)
        return ids

    def decode(self, ids):
        """The text of ids, without <s>, </s> and ids that have no piece."""
        return self.processor.decode([int(i) for i in ids if i < len(self)])

    def piece(self, i):
        """The name of the token with id `i`, with "▁" for a blank; "<i>" for an id without a piece."""
        return self.processor.id_to_piece(i) if i < len(self) else f"<{i}>"

    @classmethod
    def from_pretrained(cls, folder):
        """Reads the folder's tokenizer.model. Raises UserError."""
        folder = Path(folder)
        if (folder / "tokenizer.json").is_file() and not (folder / "tokenizer.model").is_file():
            raise UserError(f"{folder}: has tokenizer.json, but no tokenizer.model (SentencePiece's file); download "
                            "tokenizer.model from where the model was first published, such as "
                            "huggingface.co/mistralai/Mistral-7B-v0.1, and put it into the folder")
        try:
            return cls(read_bytes(folder, "tokenizer.model"))
        except UserError as error:
            raise UserError(f"{folder}: {error}") from None

    def save_pretrained(self, folder):
        """Writes tokenizer.model."""
        with whole_file(Path(folder) / "tokenizer.model", "wb") as file:
            file.write(self.model_bytes)

    @classmethod
    def train(cls, texts, size):
        """A tokenizer of at most `size` pieces, made like Mistral's: <unk> 0, <s> 1, </s> 2, bytes, then BPE's merges.

        The same texts give the same tokenizer.model, byte for byte.
        """
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts), model_writer=model, vocab_size=size, model_type="bpe", byte_fallback=True,
            character_coverage=1.0, unk_id=0, bos_id=1, eos_id=2, pad_id=-1, normalization_rule_name="identity",
            remove_extra_whitespaces=False, split_digits=True, hard_vocab_limit=False, num_threads=1,
            minloglevel=2)
        return cls(model.getvalue())
