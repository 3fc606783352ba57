"""Random command lines."""

import random
from collections.abc import Iterator

from o2o_diffusion.command_line import describe
from o2o_diffusion.settings import available, compose
from o2o_diffusion.training.folders import GROUPS
from o2o_diffusion.training.loop import Loop

VALUES = (
    *("", "1", "0", "-1", "1e3", "-0.5", "nan", "inf", "-inf", ".nan", "true", "null", "~", "[]", "{}", "[1,2]"),
    *("[8,[8]]", "[a", "{a", "{a: 1}", "a: b", "'", '"', "\"'", "*x", "&x", "&x 1", "!!python/name:os.system"),
    *("!!binary x", "!x y", "${seed}", "${nope}", "${oc.env:HOME}", "${oc.env:NOPE}", "${", "${}", "${a.b"),
    *("${oc.decode:x}", "???", "%", "@", "`", "-", "- a", "?", ":", "|", ">", "#", "1_0", "0x1f", "1:30", "1e400"),
    *("2001-01-01", "999999999999999999999999", "é", "\t", "a\nb", "\x00", "\ud800", "iql", "none", "cfdg", "/"),
    *("../x.yaml", ".yaml", "x" * 500, "[" * 50, "{a: &a [*a]}"),
)
PIECES = (
    *("", ".", "..", "seed.x", "learner", "learner.", ".learner", "learner[0]", "a[", "a]", "[]", "${seed}", " "),
    *("é", "x\x00", "name", "learner.name", "learner.target", "target", "learner.hidden[0]", "learner.hidden.0"),
    *("run", "learner.run.seed", "experiment", "task.recording.stages[0].share"),
)


def names() -> list[str]:
    """Every setting of a run with the first component of each group, in dotted form."""
    settings = compose(None, Loop.Config, GROUPS, [f"{group}={available(group)[0]}" for group in GROUPS])
    configs = {f"{group}.": settings.components[group].target.Config for group in GROUPS}
    return [name for prefix, cls in ({"": Loop.Config} | configs).items() for name, _, _ in describe(cls, prefix)]


def command_lines(count: int, seed: int) -> Iterator[list[str]]:
    """`count` lists of one to four overrides: known, misspelled and odd names, with odd values."""
    rng, known = random.Random(seed), names()
    for _ in range(count):
        words = []
        for _ in range(rng.randint(1, 4)):
            name = rng.choice(known) if rng.random() < 0.6 else rng.choice((*PIECES, *GROUPS))
            if rng.random() < 0.1 and name:
                place = rng.randrange(len(name))
                name = name[:place] + rng.choice("x.[]= ${}'") + name[place + 1 :]
            words.append(f"{name}={rng.choice(VALUES)}" if rng.random() < 0.97 else name)
        yield words
