"""200 questions of the kind of HellaSwag: which words go on from a paragraph of the text that ships for calibration."""

import json
import random
import re

from conftest import ROOT

COUNT, CHOICES = 200, 4


def write(path):
    text = (ROOT / "crates/cli/src/calibration/sample.txt").read_text(encoding="utf-8")
    paragraphs = [" ".join(p.split()) for p in text.split("\n\n")]
    sentences = [re.split(r"(?<=[.!?]) ", p) for p in paragraphs]
    pairs = [(" ".join(s[:-1]), s[-1]) for s in sentences if len(s) > 1 and 20 < len(s[-1]) < 120 and len(" ".join(s)) < 700]
    draw = random.Random(1)
    draw.shuffle(pairs)
    with path.open("w", encoding="utf-8") as file:
        for index in range(COUNT):
            context, ending = pairs[index]
            wrong = [other for _, other in draw.sample(pairs, CHOICES) if other != ending][: CHOICES - 1]
            label = draw.randrange(CHOICES)
            endings = wrong[:label] + [ending] + wrong[label:]
            question = {
                "ind": index, "activity_label": "Story", "ctx_a": context, "ctx_b": "", "ctx": context,
                "endings": endings, "label": str(label),
            }
            print(json.dumps(question, ensure_ascii=False), file=file)
