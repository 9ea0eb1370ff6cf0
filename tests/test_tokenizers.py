"""WordPiece against transformers' BertTokenizer, SentencePiece against the library itself and transformers."""

import json
import random
import shutil
import sys
import unicodedata

import pytest
import sentencepiece
import torch
import transformers

from data.files import UserError
from data.tokenizers import SPECIAL, SentencePiece, WordPiece, basic_tokens
from evaluation.explain import written
from model.decode import generate
from tests import real, tiny

REPORTS = ["The heart is normal in size. The lungs are clear.", "No pneumothorax or pleural effusion.",
           "There is a XXXX opacity in the left lower lobe, 1.5 cm.", "Mild cardiomegaly; no acute disease (stable)."]
NASTY = [
    "", " ", "\n\t\r", "___", "_ _", "the ___ year-old", "No pneumothorax.", "NO PNEUMOTHORAX", "café naïve Ångström",
    "cafe\u0301 o\u0308\u0323", "İstanbul ısı ß ẞ", "ΣΊΣΥΦΟΣ ς σ", "中文字符", "x中y文z", "㐀𠀀𪜀", "한국어 かな カナ", "ｆｕｌｌ ｗｉｄｔｈ",
    "\x00a\x01b\x02c\x7fd", "a\ufffdb", "zero\u200bwidth\u200djoiner\ufeff", "soft\u00adhyphen",
    "no\u00a0break\u2003em\u3000ideo",
    "line\u2028sep\u2029par", "a\x0bb\x0cc\x1cd\x1fe\x85f", "x" * 100, "x" * 101, "x" * 5000, "the" * 60,
    "$5 ^2 `a` ~b =c +d <e> |f",
    "«quoted» “smart” ‘marks’ — dash … ‐", "1.5 cm, 3/4, 50%", "[CLS] [SEP] a[MASK]b [UNK]x [PAD]", "[cls] [ SEP]",
    "[[SEP]]",
    "🫁 🩻 heart❤️", "e\u0301\u0302\u0303", "\u0301start", "𝔘𝔫𝔦", "ﬁ ﬂ", "①②", "١٢٣", "שָׁלוֹם", "हिन्दी", "ไทย",
    "\ud7a3", "\U0010ffff\ue000",
    "don't can't", "T2-weighted; (see 3).", "A.B.C.", "...", "--", "a" + "\u0300" * 200,
]
VOCAB = "".join(f"{token}\n" for token in dict.fromkeys(
    [*SPECIAL, *(chr(c) for c in range(33, 127)), *(f"##{chr(c)}" for c in range(33, 127)), "the", "heart", "no",
     "pneum",
     "##otho", "##rax", "café", "cafe", "caf", "naive", "##ing", "中", "文", "σ", "ς", "##σ", "ı", "i̇", "xx", "##xx",
     "\u2028",
     "ß", "ｆ", "__", "##the", "한", "ᄒ", "##ᅡ", "❤"])).encode()


def folder(path, lower_case=None, vocab=VOCAB):
    (path / "vocab.txt").write_bytes(vocab)
    if lower_case is not None:
        (path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": lower_case}))
    return path


def mutants(texts, count):
    """Random splices and insertions of the nasty texts."""
    rng = random.Random(0)
    for _ in range(count):
        pieces = [text[:40] for text in rng.choices(texts, k=rng.randint(1, 4))]
        text = "".join(piece[rng.randint(0, len(piece)):] for piece in pieces)
        for _ in range(rng.randint(0, 3)):
            place = rng.randint(0, len(text))
            text = text[:place] + chr(rng.choice([rng.randint(0, 0x24FF), rng.randint(0x2E80, 0xD7FF)])) + text[place:]
        yield text


@pytest.mark.parametrize("lower_case", [True, False, None], ids=["uncased", "cased", "no config"])
def test_wordpiece_equals_transformers(tmp_path, lower_case):
    folder(tmp_path, lower_case)
    ours, theirs = WordPiece.from_pretrained(tmp_path), transformers.BertTokenizer.from_pretrained(tmp_path)
    assert ours.lower_case == theirs.do_lower_case == (lower_case is not False)
    for text in NASTY + REPORTS:
        assert ours.encode(text) == theirs.encode(text), repr(text)
        assert ours.encode(text, special=False) == theirs.encode(text, add_special_tokens=False), repr(text)
    for text in mutants(NASTY, 1500):
        if all(known(c) for c in text):
            assert ours.encode(text) == theirs.encode(text), repr(text)


def known(c):
    """Whether Unicode classes a character as in version 3.2: the reference's tables are older than Python's."""
    then = unicodedata.ucd_3_2_0.category(c)
    return then != "Cn" and then == unicodedata.category(c)


@pytest.mark.parametrize("lower_case", [True, False])
def test_every_character_is_treated_as_the_reference_treats_it(tmp_path, lower_case):
    theirs = transformers.BertTokenizer.from_pretrained(folder(tmp_path, lower_case))._tokenizer
    characters = [chr(code) for code in range(sys.maxunicode + 1)
                  if not 0xD800 <= code < 0xE000 and known(chr(code)) and not (0xAC00 < code < 0xD7A3 and code % 50)
                  and not (0x4E00 < code < 0x9FA5 and code % 50) and not (0xE000 < code < 0xF8FF and code % 50)
                  and not (0x20000 < code and code % 500)]
    assert len(characters) > 10000
    different = []
    for c in characters:
        text = f"a{c}b"
        expected = [word for word, _ in theirs.pre_tokenizer.pre_tokenize_str(theirs.normalizer.normalize_str(text))]
        if basic_tokens(text, lower_case) != expected:
            different.append((hex(ord(c)), expected, basic_tokens(text, lower_case)))
    assert different == []


def test_wordpiece_equals_transformers_on_real_reports(tmp_path):
    splits = json.loads(real("iu_xray_annotation.json").read_text("utf-8"))
    texts = [item["report"] for split in splits.values() for item in split][:600]
    trained = WordPiece.train(texts, 2000)
    trained.save_pretrained(tmp_path)
    theirs = transformers.BertTokenizer.from_pretrained(tmp_path)
    for text in texts:
        assert trained.encode(text) == theirs.encode(text)
    assert trained.unk_id not in {i for text in texts for i in trained.encode(text)}


def test_wordpiece_decodes_what_it_encoded():
    ours = WordPiece.train(REPORTS, 400)
    text = "no pneumothorax or pleural effusion ."
    assert ours.decode(ours.encode(text)) == text
    assert ours.decode(ours.encode("no xylophone")) .startswith("no x")
    assert ours.decode([ours.cls_id, ours.sep_id, ours.pad_id]) == ""


def test_wordpiece_training_is_repeatable_and_bounded():
    ours = WordPiece.train(REPORTS, 70, lower_case=True)
    assert ours.vocab_bytes == WordPiece.train(REPORTS, 70, lower_case=True).vocab_bytes
    assert len(ours) == 70 and ours.pad_id == 0
    everything = WordPiece.train(REPORTS, 10**6)
    assert "effusion" in everything.ids and len(everything) < 200


@pytest.mark.parametrize("vocab, message", [(b"\xff\xfe", "UTF-8"), (b"a\nb\n", "lacks"), (b"", "lacks")])
def test_a_wrong_vocabulary_is_named(tmp_path, vocab, message):
    with pytest.raises(UserError, match=message):
        WordPiece.from_pretrained(folder(tmp_path, vocab=vocab))


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(UserError, match="vocab.txt"):
        WordPiece.from_pretrained(tmp_path)
    with pytest.raises(UserError, match="tokenizer.model"):
        SentencePiece.from_pretrained(tmp_path)
    for broken in ("[]", "{", "{\"do_lower_case\": " + "[" * 10**5):
        folder(tmp_path)
        (tmp_path / "tokenizer_config.json").write_text(broken)
        with pytest.raises(UserError, match="tokenizer_config.json"):
            WordPiece.from_pretrained(tmp_path)


def test_windows_line_ends_and_a_missing_last_one(tmp_path):
    unix = WordPiece(VOCAB, True)
    assert WordPiece(VOCAB.replace(b"\n", b"\r\n"), True).ids == unix.ids
    assert WordPiece(VOCAB.removesuffix(b"\n"), True).ids == unix.ids
    assert WordPiece(b"\xef\xbb\xbf" + VOCAB, True).ids == unix.ids


def test_settings_of_a_windows_editor_are_read(tmp_path):
    folder(tmp_path)
    text = json.dumps({"do_lower_case": False}, indent=1).replace("\n", "\r\n")
    (tmp_path / "tokenizer_config.json").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert not WordPiece.from_pretrained(tmp_path).lower_case


@pytest.mark.parametrize("config", [{"strip_accents": False}, {"tokenize_chinese_chars": False},
                                    {"do_lower_case": False, "strip_accents": True}])
def test_settings_that_it_does_not_honour_are_refused(tmp_path, config):
    folder(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="tokenizer_config.json: strip_accents"):
        WordPiece.from_pretrained(tmp_path)


@pytest.mark.parametrize("lower_case", [True, False])
def test_tokenizer_json_alone_is_read(tmp_path, lower_case):
    """What transformers 5 writes, with its tokenizer_config.json and without."""
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    folder(old, lower_case, VOCAB.replace("\u2028\n".encode(), b""))           # to transformers a line end
    theirs = transformers.BertTokenizer.from_pretrained(old)
    theirs.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    theirs.save_pretrained(new)
    (new / "vocab.txt").unlink(missing_ok=True)
    shutil.copy(tmp_path / "tokenizer.json", new)
    expected = WordPiece.from_pretrained(old)
    ours = WordPiece.from_pretrained(new)
    assert (ours.tokens, ours.lower_case) == (expected.tokens, lower_case)
    for text in REPORTS + ["No café 中文 [SEP]"]:
        assert ours.encode(text) == theirs.encode(text), repr(text)
    (new / "tokenizer_config.json").unlink()
    alone = WordPiece.from_pretrained(new)
    assert (alone.tokens, alone.lower_case) == (expected.tokens, lower_case)


@pytest.mark.parametrize("part, key, value", [
    ("model", "type", "BPE"), ("model", "unk_token", "<unk>"), ("model", "continuing_subword_prefix", "@@"),
    ("model", "max_input_chars_per_word", 50), ("model", "vocab", {"[PAD]": 0, "a": 2}), ("model", "vocab", ["[PAD]"]),
    ("model", "vocab", {"a\nb": 0}), ("model", "vocab", {"\ud800": 0}),
    ("model", "vocab", {"a": 0, "b": "1"}), ("normalizer", "strip_accents", False), ("normalizer", "clean_text", False),
    ("normalizer", "type", "Sequence"), ("pre_tokenizer", "type", "Whitespace"), ("model", "type", None)])
def test_another_tokenizer_json_is_refused(tmp_path, part, key, value):
    folder(tmp_path)
    transformers.BertTokenizer.from_pretrained(tmp_path).backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "vocab.txt").unlink()
    json_object = json.loads((tmp_path / "tokenizer.json").read_text())
    assert WordPiece.from_pretrained(tmp_path)
    json_object[part][key] = value
    if value is None:
        del json_object[part]
    (tmp_path / "tokenizer.json").write_text(json.dumps(json_object))
    with pytest.raises(UserError, match="tokenizer.json: not BERT's WordPiece"):
        WordPiece.from_pretrained(tmp_path)


def test_an_id_without_a_token_leaves_no_text():
    ours = WordPiece(VOCAB, True)
    assert ours.decode([*ours.encode("no heart"), len(ours), 30521]) == "no heart"


# --- SentencePiece ----------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def mistral_like():
    return SentencePiece.train([*REPORTS, "  two blanks", "line\nline", "[INST] <Img> </Img> [/INST]"] * 5, 420)


SP_NASTY = [text for text in NASTY if "\x00" not in text] + [
    "  leading", "trailing  ", "a  b   c", "\n\n", " \n ", "▁", "a▁b",
    "[INST] <Img></Img> [/INST]", "\t\t"]


def test_sentencepiece_equals_the_library(tmp_path, mistral_like):
    mistral_like.save_pretrained(tmp_path)
    ours = SentencePiece.from_pretrained(tmp_path)
    library = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    for text in [*SP_NASTY, *REPORTS, *mutants(SP_NASTY, 500), "<s> and </s> are text"]:
        assert ours.encode(text) == [1, *library.encode(text)], repr(text)
        assert ours.encode(text, special=False) == library.encode(text)
    assert (ours.bos_id, ours.eos_id, len(ours)) == (1, 2, library.vocab_size())
    assert ours.encode("") == [1]


def test_sentencepiece_equals_transformers(mistral_like):
    """transformers runs the merges itself; they follow from the pieces, which are ordered from the first merge."""
    pieces = {mistral_like.processor.id_to_piece(i): i for i in range(len(mistral_like))}
    ordered = [piece for piece, i in pieces.items() if i >= 259]
    merges = [(piece[:cut], piece[cut:]) for piece in ordered for cut in range(1, len(piece))
              if piece[:cut] in pieces and piece[cut:] in pieces]
    theirs = transformers.LlamaTokenizer(vocab=pieces, merges=merges, legacy=True)
    compared = 0
    for text in [*SP_NASTY, *REPORTS, *mutants(SP_NASTY, 300)]:
        if text and text[0] not in " ▁":                   # there transformers adds no second blank, Mistral's own does
            compared += 1
            assert mistral_like.encode(text) == [1, *theirs.encode(text, add_special_tokens=False)], repr(text)
    assert compared > 250


def test_a_text_comes_back_as_it_was(mistral_like):
    for text in REPORTS + ["  two blanks", "line\nline", "café 中文 🫁", "1.5 cm"]:
        assert mistral_like.decode(mistral_like.encode(text)) == text
        assert mistral_like.decode([*mistral_like.encode(text), mistral_like.eos_id]) == text


def test_the_vocabulary_is_made_like_mistrals_and_repeatable(mistral_like):
    assert [mistral_like.processor.id_to_piece(i) for i in range(4)] == ["<unk>", "<s>", "</s>", "<0x00>"]
    again = SentencePiece.train([*REPORTS, "  two blanks", "line\nline", "[INST] <Img> </Img> [/INST]"] * 5, 420)
    assert again.model_bytes == mistral_like.model_bytes
    assert 259 < len(SentencePiece.train(["a b"], 32000)) < 300      # more than the text gives is no error
    assert 0 not in mistral_like.encode("中 é \U0001fac1")                  # bytes, never <unk>


@pytest.mark.parametrize("model", [b"", b"junk", b"\x00" * 100])
def test_a_wrong_model_is_named(tmp_path, model):
    (tmp_path / "tokenizer.model").write_bytes(model)
    with pytest.raises(UserError, match="tokenizer.model"):
        SentencePiece.from_pretrained(tmp_path)


def test_an_id_without_a_piece_leaves_no_text(mistral_like):
    """Chat models have added tokens: ids from the vocabulary's size on."""
    size = len(mistral_like)
    ids = mistral_like.encode("No pneumothorax.")
    assert mistral_like.decode([size + 1, *ids, size, 2]) == "No pneumothorax." and mistral_like.decode([size]) == ""
    assert mistral_like.piece(size) == f"<{size}>" and mistral_like.piece(1) == "<s>"


def test_marks_are_text_or_tokens_as_the_folder_has_them(tmp_path, mistral_like):
    """Control tokens since Mistral-Instruct v0.3, whose reference puts "▁" before each text between two marks."""
    assert mistral_like.marks == {} and "[" in "".join(map(mistral_like.piece, mistral_like.encode("[INST] a [/INST]")))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*REPORTS, "<Img> </Img>"] * 5), model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=400, model_type="bpe", byte_fallback=True, unk_id=0, bos_id=1, eos_id=2, pad_id=-1, minloglevel=2,
        normalization_rule_name="identity", remove_extra_whitespaces=False, hard_vocab_limit=False,
        control_symbols=["[INST]", "[/INST]", "[TOOL_CALLS]"])
    ours = SentencePiece.from_pretrained(tmp_path)
    assert ours.marks == {"[INST]": 3, "[/INST]": 4}
    text = ours.processor.encode
    for prompt in ("[INST] No heart [/INST]", "[INST]No heart[/INST]"):
        assert ours.encode(prompt) == [1, 3, *text("No heart"), 4]
    assert ours.encode("[INST] <Img>", special=False) == [3, *text("<Img>")]               # the parts of our prompt
    assert ours.encode("No heart [/INST]", special=False) == [*text("No heart"), 4]
    for plain in ("No heart", "  two blanks ", "", "[TOOL_CALLS] [ INST]"):
        assert ours.encode(plain, special=False) == text(plain)
    assert ours.decode([1, 3, *text("No heart"), 4, *text("a heart"), 2]) in ("No heart a heart", "No hearta heart")


def test_tokenizer_json_without_tokenizer_model_names_the_file_and_where_it_is(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"no tokenizer\.model .* huggingface\.co/mistralai/Mistral-7B-v0\.1"):
        SentencePiece.from_pretrained(tmp_path)


def test_a_model_with_added_tokens_is_written_with_to_the_end():
    """Its vocabulary is larger than its tokenizer's; whatever it writes, the report is a text and so is --explain's."""
    model = tiny.model()
    size = len(model.tokenizer)
    language_model = tiny.mistral(size + 8).eval()
    with torch.no_grad():                                  # tokens without a piece are the likeliest
        language_model.lm_head.weight[:size] *= 0.01
        language_model.lm_head.weight[size:] = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
    model.language_model = language_model
    for beams in (1, 3):
        reports, _ = model.write(tiny.batch(3), beams=beams, max_new_tokens=8)
        assert all(isinstance(report.text, str) for report in reports)
    prompt = model.prompt(tiny.batch(1))
    tokens = generate(language_model, embeds=prompt.embeds, eos_id=model.tokenizer.eos_id, max_new_tokens=8)
    assert max(map(max, tokens)) >= size
    assert "<" in written(model, prompt, tokens[0])
