"""Published results for the page's table, each with its protocol, as far as it is known.

Do not compare these figures with ours without a look at `protocol` and `average`: the literature's "F1" mixes
conventions, and references were cleaned and cut in different ways before BLEU was computed. A figure without a source
is left out, never guessed.
"""

from typing import NamedTuple


class Published(NamedTuple):
    """One row. `language`: {our name of the score: value}; `clinical`: (precision, recall, F1), None if unknown."""

    name: str
    kind: str        # "published": by the authors; "re-measured": by users of the released code or weights
    language: dict
    clinical: tuple
    protocol: str    # how BLEU, ROUGE-L, METEOR, CIDEr seem to be computed
    average: str     # how the clinical figures seem to be averaged
    source: str


PUBLISHED, AGAIN = "published", "re-measured"
NO = (None, None, None)
UNSTATED = "not stated"
R2GEN = "r2gen: findings, cut to 100 words, no PTB tokens"
R2GENGPT = "r2gen's way; findings and impression, cut to 100 sub-words"
MEANS = "macro or example: F1 is not 2PR/(P+R)"
R2GENGPT_ABSENT = "its code holds no clinical scores"


def bleu(*values, **others):
    return {f"BLEU-{n}": value for n, value in enumerate(values, start=1)} | others


ROWS = {
    "mimic_cxr": (
        Published("TRRG, the paper", PUBLISHED, {}, (0.403, 0.399, 0.393), UNSTATED, MEANS + "; 14 labels, CheXbert",
                  "Wang et al., Table 1"),
        Published("R2GenGPT Shallow", PUBLISHED, bleu(0.365, 0.237, 0.163, 0.117, CIDEr=0.145), (0.341, 0.312, 0.325),
                  R2GENGPT, "micro-like: F1 is 2PR/(P+R)", "the row TRRG quotes; not checked against the paper"),
        Published("R2GenGPT Deep", PUBLISHED, bleu(0.411, 0.267, 0.186, 0.134, CIDEr=0.269), (0.392, 0.387, 0.389),
                  R2GENGPT, "micro-like: F1 is 2PR/(P+R)", "not quoted by TRRG; not checked against the paper"),
        Published("R2Gen", PUBLISHED, {}, (0.333, 0.273, 0.276), R2GEN, MEANS + "; CheXpert's labels, not CheXbert's",
                  "zhjohnchan/R2Gen#8"),
        Published("R2GenCMN", PUBLISHED, {}, (0.334, 0.275, 0.278), R2GEN, MEANS, "zhjohnchan/R2GenCMN#7"),
        Published("METransformer", PUBLISHED, {}, (None, None, 0.311), UNSTATED, MEANS, "TRRG's Table 1"),
        Published("DCL", PUBLISHED, {}, (None, None, 0.373), UNSTATED, MEANS, "TRRG's Table 1"),
        Published("R2GMMN", PUBLISHED, {}, (None, None, 0.389), UNSTATED, MEANS, "TRRG's Table 1"),
        Published("R2GenGPT Deep, one user", AGAIN,
                  {"BLEU-1": 0.345, "BLEU-4": 0.109, "ROUGE-L": 0.278, "METEOR": 0.128, "CIDEr": 0.108}, NO,
                  R2GENGPT, "", "wang-zhanyu/R2GenGPT#20"),
        Published("R2GenGPT, another user", AGAIN,
                  {"BLEU-1": 0.357, "BLEU-4": 0.112, "ROUGE-L": 0.273, "METEOR": 0.132, "CIDEr": 0.110}, NO,
                  R2GENGPT, "", "wang-zhanyu/R2GenGPT#20"),
        Published("R2GenGPT Deep, a user", AGAIN, {}, (0.353, 0.254, 0.267), "", f"macro; {R2GENGPT_ABSENT}",
                  "wang-zhanyu/R2GenGPT#18"),
        Published("R2GenGPT, a user", AGAIN, {}, (0.486, 0.353, 0.409), "", f"micro; {R2GENGPT_ABSENT}",
                  "wang-zhanyu/R2GenGPT#7"),
        Published("R2GenGPT, the same user", AGAIN, {}, (0.337, 0.221, 0.232), "", f"macro; {R2GENGPT_ABSENT}",
                  "wang-zhanyu/R2GenGPT#7"),
        Published("R2Gen's weights, a user", AGAIN, {}, (0.308, 0.483, 0.376), "", "micro", "zhjohnchan/R2Gen#8"),
        Published("R2Gen's weights, a user", AGAIN, {}, (0.194, 0.305, 0.211), "", "macro", "zhjohnchan/R2Gen#8"),
        Published("R2GenCMN's weights, a user", AGAIN, {}, (0.349, 0.235, 0.241), "", "uncertain as negative",
                  "zhjohnchan/R2GenCMN#7"),
    ),
    "iu_xray": (
        Published("R2GenGPT, a user", AGAIN, {"BLEU-4": 0.107}, NO, "r2gen's way, with the settings for MIMIC-CXR", "",
                  "wang-zhanyu/R2GenGPT#3"),
    ),
}
