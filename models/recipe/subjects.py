"""Checks how often a caption names the same subjects as the references, which CIDEr-D does not show.

Reads the JSON that evaluate.py writes. A photo's subjects are the groups below that at least three of its
five references mention. "hit": the caption mentions one of them; "false": it mentions a group that no
reference does.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from pathlib import Path

GROUPS = """
dog dogs puppy puppies|cat cats kitten kittens|horse horses pony|sheep lamb lambs|cow cows cattle bull calf
elephant elephants|giraffe giraffes|zebra zebras|bear bears|bird birds duck ducks seagull seagulls goose geese
man men guy guys gentleman male|woman women lady ladies female|boy boys|girl girls
child children kid kids toddler toddlers baby babies infant|person people crowd group
bike bikes bicycle bicycles biker bikers cyclist cyclists bicyclist|motorcycle motorcycles motorbike motorcyclist dirtbike
car cars|bus buses|truck trucks van|train trains|plane planes airplane airplanes jet|boat boats ship kayak canoe raft
skateboard skateboards skateboarder skateboarding|snowboard snowboarder snowboarding|ski skis skier skiers skiing
surfboard surfboards surfer surfers surfing|ball balls|frisbee frisbees|kite kites|soccer|football|basketball|baseball|tennis
pizza pizzas|cake cakes|sandwich sandwiches|food meal|fruit fruits banana bananas apple apples orange oranges
bed bedroom|kitchen|bathroom toilet|table desk|chair chairs couch sofa bench|laptop computer computers|phone phones
water river lake pool ocean sea|beach sand|snow|grass field|street road|rock rocks cliff mountain mountains|flower flowers
clock|umbrella umbrellas|sign signs|window windows|swing swings slide|tree trees|fountain
"""


def groups_in(text: str, group_of: dict[str, int]) -> set[int]:
    return {group_of[w] for w in re.findall(r"[a-z]+", text.lower()) if w in group_of}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("captions", type=Path)
    args = parser.parse_args()
    words = [g.split() for g in GROUPS.strip().replace("\n", "|").split("|")]
    group_of = {w: i for i, group in enumerate(words) for w in group}
    totals: dict[str, Counter] = {}
    missed: Counter = Counter()
    for file, row in json.loads(args.captions.read_text()).items():
        tally = totals.setdefault(file.split("_")[0], Counter())
        said = groups_in(row["caption"], group_of)
        named = Counter(g for r in row["references"] for g in groups_in(r, group_of))
        subjects = {g for g, n in named.items() if n >= 3}
        tally["photos"] += 1
        tally["with subjects"] += bool(subjects)
        tally["hit"] += bool(subjects & said)
        tally["false"] += bool(said - set(named))
        missed.update(f"{words[a][0]} called {words[b][0]}" for a in subjects - said for b in said - set(named))
    for source, tally in totals.items():
        print(f"{source}: {tally['photos']} photos, hit {tally['hit']}/{tally['with subjects']} "
              f"({tally['hit'] / max(1, tally['with subjects']):.0%}), false {tally['false'] / tally['photos']:.0%}")
    print("most common confusions:", ", ".join(f"{k} ({n})" for k, n in missed.most_common(12)))


if __name__ == "__main__":
    main()
