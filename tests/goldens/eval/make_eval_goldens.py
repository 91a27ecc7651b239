"""Scores the captions of this folder with pycocoevalcap: results.jsonl against references.json.

Writes expected.json. Needs pycocoevalcap 1.2 and a Java runtime for its Penn Treebank tokenizer. The
captions and references were written for this test; no photos exist.
"""

import json
from pathlib import Path

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

HERE = Path(__file__).parent


def main() -> None:
    coco = json.loads((HERE / "references.json").read_text())
    names = {image["id"]: image["file_name"] for image in coco["images"]}
    references: dict[str, list[dict]] = {}
    for annotation in coco["annotations"]:
        references.setdefault(names[annotation["image_id"]], []).append({"caption": annotation["caption"]})
    lines = (HERE / "results.jsonl").read_text().splitlines()
    results = {Path(row["path"]).name: [{"caption": row["caption"]}] for row in map(json.loads, lines)}

    tokenizer = PTBTokenizer()
    references, results = tokenizer.tokenize(references), tokenizer.tokenize(results)
    expected = {
        "photos": len(results),
        "CIDEr-D": float(Cider().compute_score(references, results)[0]),
        "BLEU-4": float(Bleu(4).compute_score(references, results, verbose=0)[0][3]),
        "ROUGE-L": float(Rouge().compute_score(references, results)[0]),
        "tokens": {name: [*results[name], *texts] for name, texts in references.items()},
    }
    (HERE / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
