import pytest

from o2o_diffusion.studies.places import Places
from o2o_diffusion.studies.study import Study

STUDY = """
axes:
  task: {short: [online_steps=2000], long: [online_steps=3000]}
  variant:
    none: [generator=none]
    cfdg: [&cfdg [generator=cfdg, generator.share=0.5]]
    unguided: [*cfdg, generator.guidance=0]
compare: variant
baseline: none
settings: [task=halfcheetah-scratch, pretrain_updates=0]
seeds: 2
"""


@pytest.fixture
def make_study(tmp_path):
    """The toy study with some of its text replaced and lines added."""

    def make(*lines: str, **replaced: str) -> Study:
        text = STUDY
        for old, new in replaced.items():
            text = text.replace(old, new)
        (tmp_path / "toy.yaml").write_text("\n".join([text, *lines]))
        return Study.load(str(tmp_path / "toy.yaml"))

    return make


@pytest.fixture
def places(tmp_path) -> Places:
    return Places(None, tmp_path / "runs", tmp_path / "toy.jsonl")
