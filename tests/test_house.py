"""The house stands: imports go down only, there are no cycles, and the browser tower knows no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FLOORS = {
    "app": 7,
    "tuner.worker": 9,
    "tuner.__main__": 7,
    "pages": 6,
    "tuner.stages": 8,
    "tuner.evaluate": 8,
    "tuner.cli": 6,
    "tuner.ui": 5,
    "tuner.engine": 7,
    "tuner.serve": 7,
    "tuner.generate": 6,
    "tuner.models": 5,
    "tuner.export": 6,
    "tuner.jobs": 4,
    "tuner.chats": 4,
    "tuner.plan": 3,
    "tuner.plan.steps": 0,
    "tuner.tracking": 3,
    "tuner.runs": 2,
    "tuner.runs.files": 1,
    "tuner.runs.locks": 1,
    "tuner.data": 2,
    "tuner.rewards": 2,
    "tuner.config": 1,
    "tuner.hosts": 0,
    "tuner.text": -1,
    "tuner.process": 2,
    "tuner.redact": 0,
    "tuner.samples": 2,
    "tuner.tensors": 0,
    "tuner.paths": 0,
    "tuner.private": 1,
    "tuner.hardware": 0,
    "tuner": 0,
}
TORCH_TOWER = (
    "tuner.models",
    "tuner.generate",
    "tuner.serve",
    "tuner.export",
    "tuner.engine",
    "tuner.stages",
    "tuner.evaluate",
    "tuner.worker",
)
BROWSER_TOWER = ("tuner.ui", "pages", "app")
HEAVY = {"torch", "transformers", "peft", "trl", "accelerate"}


def modules() -> dict[str, Path]:
    files = [ROOT / "app.py", *(ROOT / "pages").glob("*.py"), *(ROOT / "tuner").rglob("*.py")]
    return {
        ".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): f
        for f in files
        if f.is_file()
    }


def room(module: str) -> str:
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        if ".".join(parts[:length]) in FLOORS:
            return ".".join(parts[:length])
    raise AssertionError(f"{module} has no floor; give it one in DESIGN and here")


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module", autouse=True)
def _each_file_is_read_once() -> Iterator[None]:
    yield
    tree.cache_clear()


@cache
def imports(path: Path, module: str, checking: bool = True) -> tuple[str, ...]:
    """What a module imports, inside functions too; without `checking` not what only a type checker reads."""
    return tuple(_imports(path, module, checking))


def _imports(path: Path, module: str, checking: bool) -> Iterator[str]:
    for node in _nodes(tree(path), checking):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _nodes(tree: ast.AST, checking: bool) -> Iterator[ast.AST]:
    left = [tree]
    while left:
        yield (node := left.pop())
        skipped = not checking and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        left += node.orelse if skipped else ast.iter_child_nodes(node)


MODULES = modules()


def ours(name: str) -> str | None:
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        if ".".join(parts[:length]) in MODULES:
            return ".".join(parts[:length])
    return None


def test_imports_go_down_only() -> None:
    for module in MODULES:
        imports_go_down(module)


def imports_go_down(module: str) -> None:
    here = room(module)
    for name in imports(MODULES[module], module):
        target = ours(name)
        if target is None or room(target) == here:
            continue
        there = room(target)
        assert FLOORS[there] < FLOORS[here], (
            f"{module} (floor {FLOORS[here]}) imports {target} (floor {FLOORS[there]})"
        )
        if here in TORCH_TOWER:
            assert there not in BROWSER_TOWER, f"{module} imports {target} of the other tower"
        if here in BROWSER_TOWER:
            assert there not in TORCH_TOWER, f"{module} imports {target} of the other tower"


def test_no_page_imports_a_page_and_no_stage_a_stage() -> None:
    for module, path in MODULES.items():
        for name in imports(path, module):
            target = ours(name)
            if module.startswith("pages.") and target and target.startswith("pages."):
                raise AssertionError(f"{module} imports {target}")
            if module.startswith("tuner.stages.") and target and target.startswith("tuner.stages."):
                raise AssertionError(f"{module} imports {target}")


def test_heavy_libraries_stay_in_their_rooms() -> None:
    for module in MODULES:
        heavy_libraries_stay(module)


def heavy_libraries_stay(module: str) -> None:
    here = room(module)
    for name in imports(MODULES[module], module):
        top = name.split(".")[0]
        if top in HEAVY:
            assert here in TORCH_TOWER or module == "tuner.tracking.adapter_pyfunc", f"{module} imports {top}"
        assert top not in ("tools", "tests"), f"{module} imports {name}, which is not shipped"
        if top == "streamlit":
            assert here in BROWSER_TOWER, f"{module} imports streamlit"
        if top == "mlflow":
            assert here == "tuner.tracking", f"{module} imports mlflow"


def test_there_are_no_cycles() -> None:
    graph = {
        module: {t for n in imports(path, module, checking=False) if (t := ours(n)) and t != module}
        for module, path in MODULES.items()
    }
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join((*way, module))
        if module in done:
            return
        for target in graph[module]:
            visit(target, (*way, module))
        done.add(module)

    for module in graph:
        visit(module, ())


def test_the_browser_tower_and_the_parser_load_no_torch_and_no_mlflow() -> None:
    light = [
        m for m in MODULES if room(m) in ("tuner.ui", "tuner.jobs", "tuner.cli", "tuner.plan", "tuner.data")
    ]
    light = [m for m in light if not m.endswith("__main__")]
    code = (
        f"import sys, importlib\nfor m in {light!r}: importlib.import_module(m)\n"
        f"loaded = {sorted(HEAVY | {'mlflow'})!r}\n"
        "print([m for m in loaded if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip().splitlines()[-1] == "[]"


def test_no_vague_names() -> None:
    vague = {"manager", "handler", "helper", "helpers", "utils", "common", "misc", "base"}
    for module in MODULES:
        assert not vague & set(module.split(".")[-1].split("_")), module


def test_pages_are_short_and_never_render_data_as_html() -> None:
    for module, path in MODULES.items():
        if not module.startswith(("pages", "tuner.ui", "app")):
            continue
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Call) and any(k.arg == "unsafe_allow_html" for k in node.keywords):
                constant = isinstance(node.args[0], ast.Constant | ast.Name)
                assert constant, f"{module}:{node.lineno} renders something computed as HTML"


def _other_than_a_stage(tree: ast.AST) -> set[ast.AST]:
    """Constants that look like a stage and are none: PyTorch is called "pt" by libraries."""
    given = {n.value for n in ast.walk(tree) if isinstance(n, ast.keyword) and n.arg == "return_tensors"}
    files = {
        value
        for n in ast.walk(tree)
        if isinstance(n, ast.Dict)
        for key, value in zip(n.keys, n.values, strict=True)
        if isinstance(key, ast.Constant) and key.value == "format"
    }
    return given | files


def test_stages_stand_in_one_table() -> None:
    from tuner.config.kinds import STAGES, named

    assert named(where=lambda kind: kind.family == "train") == STAGES
    found = []
    for path in [*(ROOT / "tuner").rglob("*.py"), *(ROOT / "pages").glob("*.py"), ROOT / "app.py"]:
        if path.name == "kinds.py":
            continue
        named = [n for n in ast.walk(tree(path)) if isinstance(n, ast.Constant) and n.value in STAGES]
        other = _other_than_a_stage(tree(path)) if named else set()
        found += [f"{path.relative_to(ROOT)}:{n.lineno}" for n in named if n not in other]
    assert not found, f"ask config/kinds.py instead: {found}"


def test_locks_and_replaced_files_have_one_room_each() -> None:
    for module, path in MODULES.items():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Attribute) and node.attr in ("flock", "lockf"):
                assert module == "tuner.runs.locks", f"{module}:{node.lineno} locks by itself"
            if _replaces_a_file(node):
                assert module == "tuner.runs.files", f"{module}:{node.lineno} replaces a file by itself"


def _replaces_a_file(node: ast.AST) -> bool:
    """`path.replace(other)` or `os.replace(...)`; a text's takes two arguments."""
    if not (
        isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "replace"
    ):
        return False
    return ast.unparse(node.func) == "os.replace" or (len(node.args) == 1 and not node.keywords)
