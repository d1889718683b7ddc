"""Imports: each module uses only what lies upstream, and nothing heavy is loaded before it is needed."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).parent.parent / "labeler"

# From upstream to downstream: a module imports from lines above its own only. A package stands for its modules;
# those of one package may use each other, but for the models.
ORDER = """
labeler  encoders  memory  versions
errors
paths
artifacts  interrupts  processes  replacing
inputs
values
records  encoders.weights
taxonomy
evaluation  pictures
sources  remote
remote_rows  rows
baselines  ingest_options
label_errors  ingestion  store  export_tasks
inspection
preprocessing  batches  encoders.pretrained  encoders.grids
encoders.flava  self_attention
layers  losses  encoders.regions  encoders.text  pixels
coattention  encoders.image  classifier
encoders.visualbert  end_to_end
models
models.*
inference
runs  training_options  published_towers
embedding
zero_shot_model
zero_shot
decisions  model_card  shards
towers_card
items  output
engines  graphs  quantizing
labeller  exporting
own_export  output_places  ray_cluster
fitting
ray_predicting
training
pretraining
measuring  origins
tuning  evaluating  predicting  searching
explaining
report
cli
__main__
"""
# A stage hands over to the code that needs torch only when there is something to do; nowhere else may a function
# import what its module could not.
HAND_OVERS = {("preprocessing", "encoders.image"), ("preprocessing", "encoders.text")}
HEAVY = {"torch", "torchvision", "transformers", "timm", "lance", "optuna", "ray"}


class Import(NamedTuple):
    """One import: the module's full name, whether it runs with the module, and whether only the type checker sees it."""

    name: str
    line: int
    at_top: bool
    typing: bool


def module_names() -> list[str]:
    """Return the names of all modules, without the leading `labeler.`."""
    return sorted(name_of(path) for path in PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__") or "labeler"


def path_of(name: str) -> Path:
    place = PACKAGE if name == "labeler" else PACKAGE.joinpath(*name.split("."))
    return place / "__init__.py" if place.is_dir() else place.with_suffix(".py")


def imports_of(source: str) -> list[Import]:
    """Return every import in a module's source, those in functions too."""
    found: list[Import] = []

    def walk(node: ast.AST, at_top: bool, typing: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, node.lineno, at_top, typing) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: relative import"
            found.extend(Import(f"{node.module}.{alias.name}", node.lineno, at_top, typing) for alias in node.names)
        inside = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        guarded = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in ast.iter_child_nodes(node):
            walk(child, at_top and not inside, typing or guarded)

    walk(ast.parse(source), True, False)
    return found


def target(name: str) -> str | None:
    """Return our module that an import of `name` means, or None where it is not ours."""
    if name.split(".")[0] != "labeler":
        return None
    parts = name.split(".")[1:]
    while parts and not path_of(".".join(parts)).is_file():
        parts.pop()  # the last word is a name in the module
    return ".".join(parts) or "labeler"


def rank(module: str) -> int | None:
    """Return the line of ORDER on which the module stands, by its own name or its package's; None where it stands on none."""
    ranks = {name: number for number, line in enumerate(ORDER.split("\n")) for name in line.split()}
    package = module.split(".")[0]
    below = f"{package}.*" if "." in module else module
    return ranks.get(module, ranks.get(below, ranks.get(package) if package != "encoders" else None))


def wrong_imports(module: str, source: str) -> list[str]:
    """Return one sentence for each import of our own that does not go upstream."""
    wrong, package = [], module.split(".")[0]
    for item in imports_of(source):
        ours = target(item.name)
        if ours is None or ours == module or item.typing:
            continue
        same_package = ours.split(".")[0] == package and package not in ("models", "encoders")
        if same_package or (not item.at_top and (module, ours) in HAND_OVERS):
            continue
        if rank(ours) >= rank(module):
            wrong.append(f"labeler/{module}, line {item.line}: imports {ours}, which is not upstream of it")
    return wrong


def packages_at_top(module: str) -> set[str]:
    """Return the first words of what is imported when the module is."""
    return {
        item.name.split(".")[0] for item in imports_of(path_of(module).read_text()) if item.at_top and not item.typing
    }


@pytest.mark.parametrize("module", module_names())
def test_a_module_imports_only_upstream(module):
    assert rank(module) is not None, f"labeler/{module} has no place in ORDER; give it one"
    assert wrong_imports(module, path_of(module).read_text()) == []


def test_every_name_in_the_order_is_a_module():
    names = set(module_names())
    assert [name for name in ORDER.split() if name != "models.*" and name not in names] == []


@pytest.mark.parametrize(
    ("module", "source", "found"),
    [
        ("store", "from labeler.batches import collate", "imports batches"),
        ("store", "import labeler.batches", "imports batches"),
        ("records", "def f():\n    from labeler import ingestion", "line 2: imports ingestion"),
        ("pictures.images", "from labeler.rows.splits import leaks", "imports rows.splits"),
        ("models.visualbert", "from labeler.models.resnet_gru import Model", "imports models.resnet_gru"),
        ("models", "from labeler.models.resnet_gru import Model", "imports models.resnet_gru"),
        ("encoders.text", "from labeler.encoders.visualbert import load_visualbert", "imports encoders.visualbert"),
        ("fitting.fit", "from labeler.training import train", "imports training"),
        ("artifacts", "from labeler.records import Record", "imports records"),
        ("evaluation", "from labeler.cli import options", "imports cli"),
        ("fitting.fit", "def f():\n    from labeler.training_options import METRICS", None),
        ("training", "def f():\n    from labeler.fitting.fit import Fit", None),
        ("sources", "from labeler.sources import csv", None),
        ("models", "if TYPE_CHECKING:\n    from labeler.fitting.fit import Fit", None),
        ("store", "from torch import nn", None),
    ],
)
def test_the_check_itself_finds_what_is_wrong(module, source, found):
    wrong = wrong_imports(module, source)
    assert (found in wrong[0]) if found else wrong == []


@pytest.mark.parametrize(("module", "allowed"), [("errors", set()), ("artifacts", {"errors", "paths", "versions"})])
def test_what_all_others_import_imports_nothing_of_ours(module, allowed):
    assert {name for item in imports_of(path_of(module).read_text()) if (name := target(item.name))} == allowed


@pytest.mark.parametrize("module", [name for name in module_names() if name.startswith("models.")])
def test_models_never_import_each_other(module):
    ours = {target(item.name) for item in imports_of(path_of(module).read_text())}
    assert not {name for name in ours if name and name.startswith("models.") and name != module}


NO_TORCH = [
    name for name in module_names() if name.split(".")[0] in ("evaluation", "baselines", "label_errors", "report")
]


@pytest.mark.parametrize("module", NO_TORCH)
def test_figures_and_pages_are_made_without_torch(module):
    names = {item.name.split(".")[0] for item in imports_of(path_of(module).read_text())}
    assert not names & {"torch", "torchvision", "transformers"}


LIGHT = ["errors", "paths", "artifacts", "processes", "records", "ingest_options", "ingestion", "preprocessing",
         "training", "pretraining", "tuning", "fitting.distillation", "fitting.distributed", "evaluating", "origins",
         "predicting", "items", "output", "shards", "memory", "labeller",
         "engines", "engines.exported", "engines.onnx", "engines.openvino",
         "exporting", "quantizing", "decisions", "runs", "embedding", "zero_shot", "searching", "store", "export_tasks",
         "inspection", "models", "explaining.explanation", "explaining.heat_maps", "ray_cluster", "ray_predicting",
         "remote", "remote_rows", "encoders.weights"]  # fmt: skip


@pytest.mark.parametrize(
    "module", LIGHT + [name for name in module_names() if name.split(".")[0] in ("sources", "pictures", "rows")]
)
def test_what_a_stage_imports_first_is_light(module):
    assert not packages_at_top(module) & HEAVY


@pytest.mark.parametrize("module", [name for name in module_names() if name.split(".")[0] == "cli"])
def test_commands_import_only_click_and_what_is_light(module):
    assert packages_at_top(module) <= {"click", "labeler"} | set(sys.stdlib_module_names)
    ours = {target(item.name) for item in imports_of(path_of(module).read_text()) if item.at_top}
    assert ours - {None} <= {"labeler", "errors", "artifacts", "cli", "cli.options"}


def loaded_by(module: str) -> set[str]:
    """Return the packages in `sys.modules` after `import module` in a fresh process."""
    code = f"import sys, {module}; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent, timeout=60
    )
    return set(done.stdout.split())


def test_importing_the_command_loads_nothing_heavy():
    loaded = loaded_by("labeler.cli")
    assert "click" in loaded
    assert not loaded & {*HEAVY, "pandas", "pydantic", "numpy", "PIL", "scipy", "sklearn"}


@pytest.mark.parametrize("module", ["labeler.ingestion", "labeler.training", "labeler.tuning"])
def test_importing_a_stage_loads_no_torch(module):
    assert not loaded_by(module) & {*HEAVY, "pandas", "scipy", "sklearn"}
