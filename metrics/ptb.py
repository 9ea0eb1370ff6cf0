"""Penn Treebank tokens as in the COCO caption tools: text → lower-case tokens joined by blanks.

Gives the output of `PTBTokenizer` of pycocoevalcap 1.2, which runs Stanford CoreNLP 3.4.1
(`edu.stanford.nlp.process.PTBTokenizer -preserveLines -lowerCase`) and then drops a list of punctuation tokens.
Written from the program's observed behaviour; its own rule file (GPL) was not used.

Method: a longest-match lexer. At each place every rule is tried; the rule with the longest match wins, the first one on
a tie. The lookahead of a rule counts in its length.

Traps
- The output is lower-cased before the drop list is applied, which has the brackets in upper case. So round and curly
  brackets stay, as the tokens -lrb- -rrb- -lcb- -rcb-.
- R2Gen, R2GenCMN and R2GenGPT never run this tokenizer: see protocol "r2gen" in metrics/__init__.py.
- An abbreviation keeps its dot: "chest CT." (Connecticut) gives "ct.", "NO MASS." (Massachusetts) "mass.".
- Mixed numbers and telephone numbers become one token with a NO-BREAK SPACE inside. ROUGE splits at blanks only, so it
  sees one token; BLEU and CIDEr see two.
- The original reads all texts of a run as one file, so a line separator in a text shifts all later texts, and a text
  can change the tokens of the text before it. Choice: each text is read alone, as a line followed by another line.

Known differences (python -m tests.bench.check_metrics --drawn 12000: about one made-up text in a thousand, no real one)
occur only where no blank separates the pieces: a_b, a number, a dot or a mark next to a non-ASCII letter, a www. or an
e-mail address; ' next to a backtick or an accented letter; an opening quote after a letter; the smiley ;[ before
asterisks.
"""

import re
from functools import lru_cache

# Dropped by pycocoevalcap. Its list also has the brackets, but in upper case, so they never match.
DROPPED = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])

# Unicode letters as in CoreNLP's Java. Unlike `\w`: without superscripts, fractions, enclosed or Roman numerals, but
# with modifiers and combining marks. Soft hyphens inside a word are skipped.
_LETTER = (r"(?:(?:[^\W\d_\u00b2\u00b3\u00b9\u00bc-\u00be\u2070-\u2089\u2150-\u2189\u2460-\u24ff\u2776-\u2793]"
           r"|[\u02c2-\u02c5\u02d2-\u02df\u02e5-\u036f\u0483-\u0487\u0591-\u05bd])\u00ad*)")
# Symbols that are tokens by themselves. A character that is no such symbol, no letter and no punctuation is dropped.
_SYMBOL = (r"[!-/:-@\\^_`|~\u00a1\u00a5-\u00a9\u00ac\u00ae-\u00b4\u00b6-\u00b9\u00bf\u00d7\u00f7\u037e\u0387"
           r"\u2016\u2017\u201a\u201e-\u2023\u2030-\u2038\u203b\u203e-\u2042\u2044\u2070\u2074-\u207e\u2080-\u208e"
           r"\u20a4\u2100-\u2144\u2155-\u215e\u2190-\u2bff\u3001\u3002\u3012\u30fb"
           r"\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65\uffe0-\uffe6]")
_LETTER_OR_DIGIT = rf"(?:[0-9]\u00ad*|{_LETTER})"
_WORD = rf"{_LETTER}{_LETTER_OR_DIGIT}*(?:[.!?]{_LETTER}{_LETTER_OR_DIGIT}*)*"
_NUMBER = r"(?:[0-9]+(?:[.:,][0-9]+)*|(?:[.:,][0-9]+)+)"
_APOSTROPHE = r"['\u2019\u0092]"
_HYPHEN = r"[-\u058a\u2010\u2011]"
_SPACE = r"[ \t\u00a0\u2000-\u200a\u3000\n]"
_INITIALS = r"(?:[A-Za-z]\.)+"
_TAG = r"(?:<[!?/]?[A-Za-z][^<>\n]*>|<!--[^\n]*?-->)"

# Abbreviations that keep their dot. Four lists: in any case; with a capital first letter; not in all capitals; only
# before a number.
_ABBREVIATIONS = """adj adm adv al ala alex apr ariz assn assoc asst atty attys aug ave bhd bldg blvd brig bros calif
    capt cf cie cmdr co col colo conn corp cos cpl ct dak dec dept det dr drs elec ens esq est etc ext feb fla fri ft ga
    gen gov govs hon inc ind insp intl invt jan jos jr jul jun kan kans ky lieut lt ltd maj mar md messrs mich minn mlle
    mme mo mon mont mr mrs ms msgr mt natl neb nev nov oct okla penn pfc ph plc pres prof profs pvt rd rep reps rev rt
    sen sens sep sept seq sfc sgt spc sq sr st ste supt sys tel tenn thu thurs treas tue tues univ va vs vt wed wis wisc
    wm wyo ed\\.d ph\\.d""".split()
_CAPITALIZED = "ark az del ill la mass miss ore pa tex wash".split()
_NOT_ALL_CAPITALS = "mfg mtg ppte ppty pte ptes pty ptys".split()
_BEFORE_NUMBER = "art ca fig figs no nos op pp prop".split()
# Titles and some other abbreviations, to which a longer word is preferred: "mr.x" is one word, but "ct.x" two.
_YIELD_TO_WORD = """adm asst attys atty brig capt cmdr col cpl det dr drs ens gen gov govs hon insp lieut lt maj messrs
    mlle mme mr mrs ms msgr pfc pres prof profs pvt rep reps rev sen sens sfc sgt spc st ste supt treas vs cf mt
    ft""".split()
# The dot of a single letter is a token of its own before one of these words.
_SENTENCE_OPENERS = """A About According Additionally After An As At But Earlier He Her Here However If In It Last Many
    More Mr\\. Ms\\. Now Once One Other Our She Since So Some Such That The Their Then There These They This We When
    While What Yet You""".split()
_FILE_ENDINGS = """bat bmp c cgi class cpp dll docx? exe gif gz h html? jar java jpe?g mov mp3 pdf php pl png ppt ps py
    sql tar txt wav xml? x zip""".split()


def _any(words):
    return "(?:" + "|".join(sorted(words, key=len, reverse=True)) + ")"


def _capitalized(words):
    """A pattern for any of the words with a capital first letter; the other letters are in any case."""
    return _any(f"{w[0].upper()}(?i:{w[1:]})" for w in words)


_STRONG = (rf"(?:(?i:{_any(w for w in _ABBREVIATIONS if w not in _YIELD_TO_WORD)})|{_capitalized(_CAPITALIZED)}"
           rf"|{_any(f'[{w[0].upper()}{w[0]}]{w[1:]}' for w in _NOT_ALL_CAPITALS)})\.")
_WEAK = rf"(?i:{_any(_YIELD_TO_WORD)})\."

# (pattern, replacement of the token, or None to keep the text). If the pattern has a group, the group is the token.
_RULES = [
    (_TAG, None),
    (r"(?i:&amp;)", "&"), (r"(?i:&lt;)", "<"), (r"(?i:&gt;)", ">"), (r"(?i:&quot;|&apos;)", "'"), (r"&[mn]dash;", "--"),
    (r"&#[0-9]+;", None),
    (rf"({_STRONG})(?:-[A-Za-z0-9]|\S)", None),
    (r"(?i:(can)not|(gon|wan)na|(got)ta|(lem|gim)me|(more)'n)(?![A-Za-z0-9])|('t)(?i:is|was)", None),
    (rf"((?:[A-Za-z]*[A-MO-Za-mo-z]))[nN]{_APOSTROPHE}[tT]", None),
    (rf"[nN]{_APOSTROPHE}[tT]{_LETTER}*", None),
    (rf"({_LETTER}+){_APOSTROPHE}(?i:s|m|d|re|ve|ll)(?![A-Za-z])", None),
    (rf"{_APOSTROPHE}(?i:s|m|d|re|ve|ll)(?![A-Za-z])|\u2019s", None),
    (rf"[A-Za-z]*[aeiouyAEIOUY]{_APOSTROPHE}[aeiouA-Z][A-Za-z]*", None),                          # qur'an
    (rf"{_APOSTROPHE}(?i:n{_APOSTROPHE}?|em|til|cause)(?![A-Za-z])|{_APOSTROPHE}[0-9]0s", None),
    (rf"({_APOSTROPHE}[0-9]{{2}}){_SPACE}", None),
    (rf"(?i:o{_APOSTROPHE}clock|ma{_APOSTROPHE}am|[eo]{_APOSTROPHE}er|ne{_APOSTROPHE}er|c{_APOSTROPHE}mon"
     rf"|d{_APOSTROPHE}ye|ol{_APOSTROPHE})(?![A-Za-z])", None),
    (rf"([dDlLyY]{_APOSTROPHE}){_LETTER}", None),
    (rf"[dDoOlL]{_APOSTROPHE}{_LETTER}{{2,}}", None),
    (_WORD, None),
    (rf"[+-]?{_NUMBER}", None),
    (rf"(?:[dDoOlL]{_APOSTROPHE})?(?:(?:{_LETTER}|[0-9]){_LETTER_OR_DIGIT}*|[A-Za-z0-9][A-Za-z0-9.,]*)"
     rf"(?:{_HYPHEN}(?:[dDoOlL]{_APOSTROPHE})?(?:{_INITIALS}|{_LETTER_OR_DIGIT}+))+", None),  # 65-year-old
    (rf"(?:{_LETTER}|[0-9]){_LETTER_OR_DIGIT}*", None),                                           # 2cm
    (r"[A-Za-z0-9]+(?:[_-][A-Za-z0-9]+)+", None),                                                 # a_b
    (r"[0-9]{1,4}-[0-9]{1,4}/[0-9]{1,4}", None),
    (r"[A-Za-z0-9]+(?:-[A-Za-z]+)*(?:/[A-Za-z0-9]+(?:-[A-Za-z]+)*){1,2}", None),                  # ap/pa/lateral
    (rf"[A-Za-z0-9]+(?:\.[A-Za-z0-9]+)*\.(?i:{_any(_FILE_ENDINGS)})(?![A-Za-z0-9])", None),
    (r"[A-Z]+(?:(?:[&+]|&amp;)[A-Z]+)+", None),                                                   # R&D
    (r"[0-9]{1,2}[-/][0-9]{1,2}[-/][0-9]{2,4}", None),                                            # dates
    (r"[0-9]{1,4}[ \u00a0][0-9]{1,4}/[0-9]{1,4}", None),                                          # 1 1/2
    (r"(?:\([0-9]{2,3}\)[ \u00a0]?|(?:\+\+?)?(?:[0-9]{2,4}[- \u00a0])?[0-9]{2,4}[- \u00a0])"
     r"[0-9]{3,4}[- \u00a0]?[0-9]{3,5}", None),                                                   # telephone numbers
    (_STRONG, None),
    (_WEAK, None),
    (rf"((?i:{_any(_BEFORE_NUMBER)})\.){_SPACE}?[0-9]", None),
    (_INITIALS, None),
    (rf"((?:{_WORD}|[A-Za-z0-9]+(?:-[A-Za-z0-9]+)*)\.)[,;:]", None),
    (rf"([A-Za-z])\.{_SPACE}+(?:{_any(_SENTENCE_OPENERS)}|{_TAG}){_SPACE}", None),
    (r"https?://[^ \t\n\f\r\"<>|(){}]+[^ \t\n\f\r\"'<>|.!?(){},-]", None),
    (r"(?:[^\s\"`'<>|.!?(){}\[\],;:$/-]+\.)+(?:com|net|org|edu)(?![A-Za-z])", None),
    (r"[A-Za-z0-9][^\s\"<>|(){}@]*@[^\s\"<>|(){}]*[^\s\"<>|(){}.]>?", None),                       # e-mail
    (r"@[A-Za-z_][A-Za-z_0-9]*", None), (r"#[A-Za-z]+", None),
    (r"([:;=8][-^]?[()DPp])[^A-Za-z0-9]", None),                                                  # smileys
    (r"[A-Z]*\$", None), (r"\u00a3", "#"), (r"\u00a2", "cents"), (r"[\u0080\u20ac]", "$"),
    (r"\.\.\.|\.(?: \.){2,}|[\u2026\u0085]", "..."),
    (r"[!?]+", None), (r"-{2,4}|[\u2013\u2014\u2015\u0096\u0097]", "--"), (r"-{5,}", None), (r"_+|\*+|[<>]{2}", None),
    (r"\u00bd", "1/2"), (r"\u00bc", "1/4"), (r"\u00be", "3/4"), (r"\u2153", "1/3"), (r"\u2154", "2/3"),
    (r"\(", "-lrb-"), (r"\)", "-rrb-"), (r"\[", "-lsb-"), (r"\]", "-rsb-"), (r"\{", "-lcb-"), (r"\}", "-rcb-"),
    (r"``|''|[\u2018-\u201f\u0091-\u0094\"]", "'"),
    (_SYMBOL, None),
]
_RULES = [(re.compile(pattern), instead) for pattern, instead in _RULES]
# Places where a rule can match across a blank. A text without them is tokenised piece by piece, split at blanks.
_REACHES_OVER_BLANK = re.compile(
    rf"<[!?/A-Za-z]|[0-9)] [0-9(+]|\. \.|(?i:{_any(_BEFORE_NUMBER)})\. [0-9]"
    rf"|(?<![A-Za-z])[A-Za-z]\. +{_any(_SENTENCE_OPENERS)} ")
_IN_TOKEN = {ord(a): f"-{b}-" for a, b in zip("()[]{}", ("lrb", "rrb", "lsb", "rsb", "lcb", "rcb"))}


def _all_tokens(text):
    """The lower-case tokens of a text that ends with a line end, including punctuation."""
    tokens, place = [], 0
    while place < len(text):
        match, replacement = (None, None) if text[place].isspace() else _longest_match(text, place)
        if match is None:
            place += 1
            continue
        token = match[match.lastindex] if match.lastindex else match[0]
        place += len(token)
        tokens.append((_normal_form(token) if replacement is None else replacement).lower())
    return tokens


def _longest_match(text, place):
    """(the longest match of a rule at a place, the rule's replacement), the first on a tie; (None, None) if none."""
    longest, its_replacement, end = None, None, place
    for rule, replacement in _RULES:
        match = rule.match(text, place)
        if match and match.end() > end:
            longest, its_replacement, end = match, replacement, match.end()
    return longest, its_replacement


def _normal_form(token):
    """A token as CoreNLP writes it: no soft hyphens, NO-BREAK SPACE for blanks, brackets as -lrb-, "n't" with "'"."""
    form = token.replace("\u00ad", "").replace(" ", "\u00a0")
    form = form if "@" in token else form.translate(_IN_TOKEN)                    # e-mail addresses keep their brackets
    return re.sub("^(n?)[\u2019\u0092](?=(?:[tsmd]|re|ve|ll)$)", r"\1'", form)


def _remaining(text):
    return " ".join(token for token in _all_tokens(text + "\n") if token not in DROPPED)


_remaining_of_piece = lru_cache(maxsize=1 << 16)(_remaining)         # words repeat; whole texts do not


def tokenize(text):
    """One text → its lower-case tokens without the dropped punctuation, joined by blanks."""
    text = " ".join(re.sub(r"[\x00-\x1f\x7f]", " ", text).split())
    if _REACHES_OVER_BLANK.search(text + " "):
        return _remaining(text)
    return " ".join(filter(None, map(_remaining_of_piece, text.split(" "))))
