"""What the README shows runs, and what it names exists."""

import re
from pathlib import Path

import torch

from o2o_diffusion.settings import CONFIGS, compose
from o2o_diffusion.training.finetune import Run
from o2o_diffusion.training.folders import GROUPS
from o2o_diffusion.training.loop import Loop
from o2o_diffusion.types import Source

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_generator_of_ones_own_runs(tmp_path, tiny_run, monkeypatch):
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "class NoisyRows" in block]
    shorter = re.sub(r"Refresh\(rows=.*?\)", "Refresh(rows=50, first=30, interval=30)", code)
    assert shorter != code
    (tmp_path / "noisy_rows.py").write_text(shorter)
    (tmp_path / "noisy.yaml").write_text("target: noisy_rows.NoisyRows\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    own = [
        f"generator={tmp_path / 'noisy.yaml'}",
        "generator.noise=0.01",
        "learner=iql",
        "modules=noisy_rows",
        f"output={tmp_path / 'run'}",
    ]
    loop = Run(compose(CONFIGS / "finetune.yaml", Loop.Config, GROUPS, [*tiny_run, *own])).loop
    shares, update = [], loop.learner.update
    loop.learner.update = lambda batch: shares.append(float(batch.is_generated.float().mean())) or update(batch)
    assert loop.run() and loop.refresher.count == 2
    rows = loop.replay.pools[Source.GENERATED_ONLINE].all()
    real = torch.cat([pool.all().observations for pool in (loop.replay.offline, loop.replay.online)])
    assert len(rows) == 50 and 0 < torch.cdist(rows.observations, real).amin(1).mean() < 0.05
    assert shares[:40] == [0.0] * 40 and 0.2 < sum(shares[-40:]) / 40 < 0.3  # a quarter


def test_what_it_names_exists_and_it_is_short():
    names = set(re.findall(r"docs/[\w/]+\.(?:md|png)|examples/\w+\.py|scripts/\w+\.py|benchmarks/\w+\.py", README))
    assert sum(name.startswith("docs/") for name in names) >= 4 and sum(name.startswith("ex") for name in names) >= 4
    assert [name for name in sorted(names) if not (ROOT / name).is_file()] == []
    assert README.count("\n") <= 125
