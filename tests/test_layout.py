"""The package's layers, what no file may import, and how light an import is."""

import ast
import subprocess
import sys
from pathlib import Path

import o2o_diffusion

PACKAGE = Path(o2o_diffusion.__file__).parent
LAYERS = (
    "errors ranges trust types distributed state progress",
    "optimization settings storage replay schedule decision",
    "protocols data networks diffusion command_line",
    "agents environments",
    "learners samplers generators quality",
    "training",
    "integrations studies",
    "scripts __init__",
)
LAYER = {room: layer for layer, rooms in enumerate(LAYERS) for room in rooms.split()}
COMPONENTS = {"learners", "samplers", "generators"}


def room(file: Path) -> str:
    """The folder, or the module, of the package that `file` belongs to."""
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(file: Path) -> set[str]:
    """Rooms that `file` imports, at the top or inside functions."""
    nodes = list(ast.walk(ast.parse(file.read_text())))
    names = [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    names += [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    return {name.split(".")[1] for name in names if name.startswith("o2o_diffusion.")}


FILES = [file for file in PACKAGE.rglob("*.py") if room(file) != "configs"]


def test_a_file_imports_lower_layers_or_its_own_folder():
    upward = [
        (file.name, other)
        for file in FILES
        for other in imports(file) - {room(file)}
        if LAYER[other] >= LAYER[room(file)]
    ]
    assert not upward


def writes(file: Path) -> list[str]:
    """What in `file` writes, moves or opens files for writing."""
    calls = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
    found = []
    for call in calls:
        name = ast.unparse(call.func).rpartition(".")[2]
        modes = [a.value for a in (*call.args, *(k.value for k in call.keywords)) if isinstance(a, ast.Constant)]
        opens = name == "open" and any(isinstance(mode, str) and set(mode) & set("wax+") for mode in modes)
        if opens or name in ("write_text", "write_bytes", "rename", "renames", "mkstemp", "mkdtemp", "move"):
            found.append(ast.unparse(call))
    return found


def test_files_are_written_by_the_one_writer_only():
    """Save the output of a study's processes, which they write themselves, and what libraries write to its paths."""
    others = {file: writes(file) for file in FILES if room(file) != "storage" and file.name != "runner.py"}
    assert not {file.name: found for file, found in others.items() if found}


def test_no_component_reads_datasets():
    assert not [file for file in FILES if room(file) in COMPONENTS and "data" in imports(file)]


def test_diffusion_knows_nothing_of_reinforcement_learning():
    for file in (PACKAGE / "diffusion").glob("*.py"):
        assert imports(file) <= {"diffusion", "distributed", "optimization", "state"}, file


def test_importing_the_package_is_light():
    heavy = "torch", "diffusers", "gymnasium", "minari", "matplotlib", "sklearn", "scipy", "wandb"
    code = f"import o2o_diffusion, sys; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_the_loop_names_no_component():
    files = [file for file in FILES if room(file) in COMPONENTS and "class Config" in file.read_text()]
    names = {file.stem for file in files} - {"base"}
    for module in ("training/loop", "training/finetune", "environments/collector", "protocols"):
        nodes = ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text()))
        assert not {node.id.lower() for node in nodes if isinstance(node, ast.Name)} & names, module
