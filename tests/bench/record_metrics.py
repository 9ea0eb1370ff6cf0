"""Records what pycocoevalcap 1.2 (with Java) and snowballstemmer 2.2 say of made-up reports, for tests that run without
them.

    python -m tests.bench.record_metrics            writes tests/golden/ptb.json, language.json, meteor.json, stems.json

The texts are drawn here, from sentences and from the pieces that tokenizers stumble over; no report of a data set is in
them. METEOR is recorded twice: as the wrapper calls the jar, and with the jar's `-m "exact stem"`. A third time it is
given a small synonym folder and paraphrase table of our own (meteor.json), with which the whole metric is tested where
the jar and its data are not.
"""

import gzip
import json
import random
import subprocess
import tempfile
from pathlib import Path

from tests.bench.metrics import drawn_pairs

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
PIECES = r"""FINDINGS:|IMPRESSION:1.|1.|2.|1)|___|___-year-old|___.|Dr. ___|at ___ p.m.|a.m. The|3:24 p.m.|at 10:30 am
2.3 cm|2.3cm
2cm|1.5 x 2.3 cm|x2.3|2.5-3.0|50%-60%|T8-T9|T11.|t5/t6|and/or|s/p|AP/PA/lateral|+/-|w/|w/o|CT.|chest CT. No|NO MASS.
no mass.|Mass.
Rt. lung|Lt.|Col.|Det.|PA. Lateral|Ill.|Ext.|Sq.|St. Jude|et al.|etc. There|vs.|cf.|no. 3|No.|fig. 2|approx. 3|5 mm.
type B. The|type A.
No|U.S.|i.e., the|"quoted"|'single'|patient's|patients'|doesn't|can't|cannot|isn't|it's|we've|'90s|1990's|gonna
normal.The|effusion,no
size:normal|1,000|12/03/2009|3/4|1 1/2|12 1234 567|(555) 123-4567|1.1.1|-2.5|<5 mm|>5|>=3|#3|&|&amp;|R&D|**|~|5'10"|{a}
[b]|(c)|[**Name**]
...|. . .|--|---|-----|- No|–|—|mid-to-lower|post-operative-|port-a-cath|65 y.o.|M.D.|R. L. lung|C5-6|X-RAY.|???|!|:( x
www.foo.org|a@b.com
<b>|a_b|_|°|98.6°F|½|±|≥|“no”|‘no’|patient’s|don’t|naïve|Ménière|…|•|$5|5%|£|cm²|α-blocker|10th|Sept. The|Mon.|Mrs. X
Corp.|pp. 3|ca. 1990
q.d.|b.i.d.|p.o. with|XXXX.|XXXX-XXXX|(right > left)|effusion.|CO2.|.5 cm|0.5-1.0|5-10mm|effusion,left-sided|CXR.;
clear., no|T8|rv|c5
as|The heart|is normal.|lungs clear|right lung|no evidence of|pneumothorax,|opacity;|stable
Heart""".replace("\n", "|").split("|")


def nasty_texts(count, rng):
    texts = []
    for _ in range(count):
        parts = [rng.choice(PIECES) for _ in range(rng.randint(4, 22))]
        texts.append("".join(part + ("" if rng.random() < 0.03 else " ") for part in parts).strip())
    return texts


def language_pairs(rng):
    """(hypothesis, [references]): near copies, unrelated texts, several references, long and empty ones."""
    pairs = [(hypothesis, [reference]) for hypothesis, reference in drawn_pairs(60, 45, rng)]
    for hypothesis, reference in drawn_pairs(40, 30, rng):
        words = reference.split()
        for _ in range(rng.randint(1, 6)):
            a, b = rng.randrange(len(words)), rng.randrange(len(words))
            words[a], words[b] = words[b], words[a]
        pairs.append((" ".join(words), [reference, hypothesis][: rng.randint(1, 2)]))
    texts = nasty_texts(60, rng)
    pairs += [(a, [b]) for a, b in zip(texts[:20], texts[20:40])]
    pairs += [(text, [" ".join(text.split()[::2])]) for text in texts[40:]]
    pairs += [(texts[0], texts[1:4]), ("no effusion . " * 20, ["no pneumothorax . " * 15]), ("Effusions", ["Effusion"]),
              ("the rv is at c6", ["the t8 is c5"]), ("normal", ["normal"]), ("x", ["the heart is normal"]),
              ("", ["normal"]),
              ("the lungs are clear", [""]), ("big heart . painful", ["large cardiac silhouette . sore"])]
    return pairs


# In METEOR's format: a word, then the numbers of the sets it is in; a base form, then its irregular forms.
SYNSETS = dict(heart="1 2", cardiac="1", ticker="2", large="3", big="3", enlarge="3 4", widen="4", opacity="5",
               density="5 6", shadow="6", lung="7", pulmonary="7", effusion="8", fluid="8", normal="9", unremarkable="9",
               clear="9 10", clean="10", small="11", little="11", minor="11", mild="11", vertebra="12", spine="12",
               spinal="12", see="13", view="13", break_="14", fracture="14", catheter="15", line="15", tip="16", end="16",
               rib="17", bone="17", osseous="17", stable="18", unchange="18", be="19", exist="19", box="20", case="20")
EXCEPTIONS = dict(vertebra="vertebrae", see="saw seen", be="am are is was were", good="better best")


def own_meteor_data(rng, pairs):
    """{"synsets", "exceptions", "paraphrases": [[phrase, paraphrase], …]}: phrases are cut from the pairs' own texts."""
    def phrase(text):
        words = text.split()
        start = rng.randrange(len(words))
        return " ".join(words[start:start + rng.choice([1, 1, 2, 2, 3, 4, 7])])

    rows = [[phrase(hypothesis), phrase(reference)][::rng.choice([1, -1])]
            for hypothesis, (reference, *_) in pairs for _ in range(12) if hypothesis.split() and reference.split()]
    rows += [[b, a] for a, b in rows[::5]] + [["enlarged heart", "cardiomegaly"], ["none", "no"]]
    synsets = {word.strip("_"): numbers for word, numbers in SYNSETS.items()}
    rows = dict.fromkeys((a, b) for a, b in rows if a != b)
    return {"synsets": synsets, "exceptions": EXCEPTIONS, "paraphrases": list(map(list, rows))}


def write_meteor_data(data, folder):
    """The same as files: the two word lists (the jar takes their folder), and the table; returns the table's path."""
    for name in ("synsets", "exceptions"):
        (folder / f"english.{name}").write_text("".join(f"{word}\n{rest}\n" for word, rest in data[name].items()))
    (folder / "english.relations").write_text("")
    table = "".join(f"0.5\n{phrase}\n{other}\n" for phrase, other in data["paraphrases"])
    (folder / "paraphrase-en.gz").write_bytes(gzip.compress(table.encode()))
    return folder / "paraphrase-en.gz"


def own_meteor(rng, pairs):
    """meteor.json: our data, pairs that it has much to say of, and the jar's (corpus, items) with it."""
    synonyms = [["the enlarged heart is widened", ["big cardiac silhouettes are large"]],
                ["vertebrae saw minor fractures", ["spine seen with little breaks", "the vertebra is broken"]],
                ["boxes are unchanged", ["case is stable"]], ["pulmonary densities", ["lung opacity", "lungs shadowed"]],
                ["catheters ending at ribs", ["line tips at the bone"]], ["fluids exist", ["effusions were there"]]]
    # More paths than the beam holds, up to the last word.
    crowded = [["clear lung clean vertebrae lung clear little vertebrae little vertebrae lung lungs",
                ["little lungs lung vertebrae clear density lungs"]],
               [". . spine spine opacity opacity lungs opacity clean vertebrae lungs",
                [". clean opacity vertebrae and lungs cardiac opacity clean vertebrae"]]]
    words = "the no ribs rib fractures fracture clear clean opacity density lungs lung small little vertebrae spine".split()
    for _ in range(40):
        some = rng.sample(words, rng.randint(3, 12))
        hypothesis, reference = (" ".join(rng.choices(some, k=rng.randint(3, 25))) for _ in range(2))
        crowded.append([hypothesis, [reference]])
    data = own_meteor_data(rng, pairs)
    pairs = pairs + synonyms + crowded
    with tempfile.TemporaryDirectory() as folder:
        table = write_meteor_data(data, Path(folder))
        return data | {"pairs": pairs, "scores": meteor_lines(pairs, "-d", folder, "-a", str(table))}


def meteor_lines(pairs, *options):
    """(corpus, items) of the jar, spoken to as pycocoevalcap does."""
    import pycocoevalcap.meteor.meteor as wrapper

    folder = Path(wrapper.__file__).parent
    command = ["java", "-Xmx2G", "-jar", wrapper.METEOR_JAR, "-", "-", "-stdio", "-l", "en", "-norm", *options]
    with subprocess.Popen(command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL) as jar:
        def say(line):
            jar.stdin.write(f"{line}\n".encode())
            jar.stdin.flush()
            return jar.stdout.readline().decode().strip()

        statistics = [say(" ||| ".join(["SCORE", *references, hypothesis.replace("|||", "").replace("  ", " ")]))
                      for hypothesis, references in pairs]
        items = [float(say(" ||| ".join(["EVAL", *statistics])))]
        items += [float(jar.stdout.readline()) for _ in pairs]
    return items[-1], items[:-1]


def tokens(texts):
    """Each text's tokens; a neutral text follows each, so that the next one has no say in it."""
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    captions = {}
    for i, text in enumerate(texts):
        captions[i, 0], captions[i, 1] = [{"caption": text}], [{"caption": "neutral text"}]
    found = PTBTokenizer().tokenize(captions)
    return [found[i, 0][0] for i in range(len(texts))]


def write(name, value):
    GOLDEN.mkdir(exist_ok=True)
    (GOLDEN / name).write_text(json.dumps(value, ensure_ascii=False, indent=0, separators=(",", ":")) + "\n",
                               encoding="utf-8")


def main():
    import snowballstemmer
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    rng = random.Random(4)
    texts = nasty_texts(400, rng) + [text for pair in drawn_pairs(20, 50, rng) for text in pair]
    write("ptb.json", [[text, found] for text, found in zip(texts, tokens(texts))])

    pairs = language_pairs(rng)
    flat = tokens([text for hypothesis, references in pairs for text in [hypothesis, *references]])
    pairs = [(flat.pop(0), [flat.pop(0) for _ in references]) for _, references in pairs]
    # Rows as R2Gen writes them: the sentence dot is a word; and blanks that make empty tokens.
    pairs += [("no effusion . lungs are clear .", ["lungs clear . no effusion ."]), ("a  b", [" a b", "a"])]
    truths = {i: references for i, (_, references) in enumerate(pairs)}
    results = {i: [hypothesis] for i, (hypothesis, _) in enumerate(pairs)}
    scores = {}
    for name, scorer in (("bleu", Bleu(4)), ("rouge", Rouge()), ("cider", Cider())):
        corpus, items = scorer.compute_score(truths, results, *((0,) if name == "bleu" else ()))
        scores[name] = [corpus, [list(map(float, row)) for row in items] if name == "bleu" else list(map(float, items))]
        if name != "bleu":
            scores[name][0] = float(corpus)
    scores["meteor"] = meteor_lines(pairs)
    scores["meteor exact+stem"] = meteor_lines(pairs, "-m", "exact stem")
    write("language.json", {"pairs": pairs, "scores": scores})
    write("meteor.json", own_meteor(random.Random(5), [[a, b] for a, b in pairs[:100:2]]))

    words = sorted({"".join(c for c in word.lower() if c.isalpha() or c == "'") for text in texts
                    for word in text.split()} - {""})
    endings = ["", "s", "'s", "ed", "edly", "ing", "ingly", "ly", "ness", "ization", "ies", "ational", "fulness",
               "ousli", "eed", "y"]
    words = rng.sample([word + ending for word in words for ending in endings], 3000)
    letters = "aeiouybdlgnst'"
    words += ["".join(rng.choice(letters) for _ in range(rng.randint(1, 9))) for _ in range(1500)]
    words += """generate communication arsenal skies dying news inning canning herring proceed succeed radiologist
        cardiologist adding yyed sayed enjoyed tied ties cries hopping hoping falling fizzed agreed happily
        vileli""".split()
    write("stems.json", dict(zip(words, snowballstemmer.stemmer("english").stemWords(words))))


if __name__ == "__main__":
    main()
