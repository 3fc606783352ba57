import ast
import subprocess
import sys
from pathlib import Path

import o2o_diffusion

PACKAGE = Path(o2o_diffusion.__file__).parent
LEVELS = [
    {"types", "optimization", "distributed", "config", "errors", "hardware"},
    {"data", "networks", "diffusion", "behaviours", "envs"},
    {"protocols", "agents"},
    {"generators", "samplers", "learners"},
    {"interaction", "evaluation", "logger", "checkpoint", "quality", "report", "tasks", "probe", "refreshing"},
    {"finetuning", "runs", "generation", "estimate", "folders", "interruption", "integrations", "augmentation"},
    {"scripts"},  # in an installed package
]
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}
COMPONENTS = {"generators", "samplers", "learners"}


def imports(file: Path) -> set[str]:
    """Modules directly below the package that `file` imports."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        names = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        found |= {name.split(".")[1] for name in names if name.startswith("o2o_diffusion.")}
    return found


def test_imports_go_down_and_components_do_not_know_each_other():
    for file in PACKAGE.rglob("*.py"):
        own = file.relative_to(PACKAGE).with_suffix("").parts[0]
        if own == "__init__":
            continue
        for other in imports(file):
            assert LEVEL[other] <= LEVEL[own], f"{own} imports {other}"
            assert not (own in COMPONENTS and other in COMPONENTS - {own}), f"{own} imports {other}"


def test_diffusion_knows_nothing_of_reinforcement_learning():
    for file in (PACKAGE / "diffusion").glob("*.py"):
        assert imports(file) <= {"diffusion", "distributed", "optimization"}, file


def test_importing_the_package_is_light():
    heavy = "torch", "diffusers", "gymnasium", "minari", "matplotlib", "sklearn", "scipy", "wandb"
    code = f"import o2o_diffusion, sys; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_the_loop_names_no_component():
    files = [
        path for kind in COMPONENTS for path in (PACKAGE / kind).glob("*.py") if "class Config" in path.read_text()
    ]
    names = {path.stem for path in files} - {"base"}
    for module in ("finetuning", "runs", "interaction", "protocols"):
        words = {
            node.id.lower()
            for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text()))
            if isinstance(node, ast.Name)
        }
        assert not words & names, module
