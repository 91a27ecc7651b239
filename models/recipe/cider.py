"""CIDEr-D on word lists, for rewards and for choosing checkpoints. The published scores come from pycocoevalcap."""

from __future__ import annotations

import math
from collections import Counter

END = "</s>"


def ngrams(words: list[str]) -> list[Counter]:
    return [Counter(tuple(words[i:i + n]) for i in range(len(words) - n + 1)) for n in (1, 2, 3, 4)]


class CiderD:
    """Scores captions against fixed references; any hashable key can identify a photo."""

    def __init__(self, references: dict[object, list[str]], end: bool = False) -> None:
        self.tail = [END] if end else []
        counted = {key: [ngrams(t.split() + self.tail) for t in texts] for key, texts in references.items()}
        seen: Counter = Counter()
        for refs in counted.values():
            seen.update({gram for ref in refs for counts in ref for gram in counts})
        self.total = math.log(len(references))
        self.idf = {gram: self.total - math.log(n) for gram, n in seen.items()}
        self.references = {key: [self._vector(ref) for ref in refs] for key, refs in counted.items()}

    def _vector(self, counted: list[Counter]) -> tuple[list[dict], list[float], int]:
        vectors = [{gram: n * self.idf.get(gram, self.total) for gram, n in counts.items()} for counts in counted]
        norms = [math.sqrt(sum(v * v for v in vector.values())) for vector in vectors]
        return vectors, norms, sum(counted[1].values())

    def score(self, key: object, caption: str) -> float:
        vectors, norms, length = self._vector(ngrams(caption.split() + self.tail))
        total = 0.0
        references = self.references[key]
        for ref_vectors, ref_norms, ref_length in references:
            penalty = math.exp(-((length - ref_length) ** 2) / 72)
            for vector, norm, ref_vector, ref_norm in zip(vectors, norms, ref_vectors, ref_norms):
                if norm and ref_norm:
                    shared = sum(min(v, ref_vector[g]) * ref_vector[g] for g, v in vector.items() if g in ref_vector)
                    total += penalty * shared / (norm * ref_norm)
        return 10 * total / 4 / len(references)
