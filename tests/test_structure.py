"""The house: imports go down, modules stay small, every public name is documented and typed."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import gradx
from gradx import core
from gradx.core import moved

ROOT = Path(gradx.__file__).parent

# Modules that mirror Optax's of the same name; what is public there is looked up.
NAMESPACES = [
    *["assignment", "contrib", "experimental", "losses", "microbatching", "perturbations"],
    *["projections", "schedules", "second_order", "transforms", "tree", "tree_utils"],
]

# The rooms that docs/design.md draws, from the bottom up.
ROOMS = [
    re.findall(r"`([\w./]+)`", row.split("|")[1])
    for row in re.findall(
        r"^\| .*`.*$",
        (ROOT.parent / "docs/design.md").read_text().partition("## Rooms")[2].partition("\n## ")[0],
        re.MULTILINE,
    )
]

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    .removesuffix("__init__")
    .rstrip("."): path
    for path in sorted(ROOT.rglob("*.py"))
}
PACKAGES = [name for name, path in MODULES.items() if path.name == "__init__.py" and name]

FILES = [name for name in NAMESPACES if name not in PACKAGES]

every_module = pytest.mark.parametrize("module", MODULES, ids=lambda name: name or "gradx")


def room(module: str) -> tuple[int, str]:
    """How high the room of a module lies, and which it is: its folder, or what lies at the root."""
    fitting = [
        (i, name)
        for i, names in enumerate(ROOMS)
        for name in names
        if module == name.rstrip("/").replace("/", ".")
        or (name.endswith("/") and module.startswith(name.replace("/", ".")))
    ]
    if module in NAMESPACES:
        fitting = [(len(ROOMS), "a namespace of Optax")]
    if module == "":
        fitting = [(len(ROOMS) + 1, "the face")]
    assert fitting, f"gradx.{module} is in no room of docs/design.md"
    return max(fitting, key=lambda found: len(found[1]))


def imports(module: str, source: str) -> Iterator[str]:
    """The modules of gradx that a module imports, anywhere in it: inside functions too."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                imported = [name.name for name in names]
            case ast.ImportFrom(module=origin, names=names, level=level):
                assert level == 0, f"gradx.{module}: imports are written in full"
                # `from gradx.core import trees` names a module, `… import wide` does not.
                full = [f"{origin}.{name.name}" for name in names]
                imported = [f if f[6:] in MODULES else origin or "" for f in full]
            case _:
                continue
        for name in imported:
            if name.split(".")[0] == "gradx":
                yield name[6:]


# ---------------------------------------------------------------- the layers


@every_module
def test_imports_only_go_down(module: str) -> None:
    """To lower rooms, or to modules of the same room."""
    for imported in imports(module, MODULES[module].read_text()):
        (height, here), (below, there) = room(module), room(imported)
        assert below < height or here == there, f"gradx.{module} imports gradx.{imported}"


def test_no_room_has_a_circle() -> None:
    """Modules of one room have an order, too: each can be read after those that it imports."""
    needs = {m: set(imports(m, path.read_text())) for m, path in MODULES.items() if m}
    while ready := {m for m, found in needs.items() if not found & set(needs)}:
        needs = {m: found for m, found in needs.items() if m not in ready}
    assert not needs


def test_every_room_says_what_belongs_there() -> None:
    for name in PACKAGES:
        doc = ast.get_docstring(ast.parse(MODULES[name].read_text())) or ""
        assert len(doc) > 40, f"gradx/{name.replace('.', '/')}/__init__.py"


def test_what_lies_at_the_root() -> None:
    """The contract, the face and the public namespaces."""
    assert {m for m in MODULES if "." not in m} - set(PACKAGES) == {"", "contract", *FILES}


def test_an_upward_import_would_be_seen() -> None:
    """The laws above rest on `imports`: every way to write one is found."""
    code = """
from gradx import chain, core
from gradx.core import trees as gtree
from gradx.lift.leafwise import run
import gradx.optimizers.first_order.sgd
def late():
    from gradx.inspection.describe import describe
"""
    found = sorted(imports("x", code))
    sgd = "optimizers.first_order.sgd"
    assert found == ["", "core", "core.trees", "inspection.describe", "lift.leafwise", sgd]
    assert room("optimizers.sign.lion_signum") > room(sgd) > room("pieces.clip")
    assert room("optimizers.sign.lion_signum")[1] != room("optimizers.matrix.muon")[1]


# What only a compiler needs, and the names of compilers.
FOR_COMPILERS = re.compile(
    r"optimization_barrier|platform_dependent|custom_vmap|default_backend|jaxpr_as_fun|eval_jaxpr"
    r"|\bXLA|\bLLVM|\bMosaic|\bTriton|\bjaxlib"
)


@every_module
def test_what_compilers_need_is_in_one_room(module: str) -> None:
    found = FOR_COMPILERS.findall(MODULES[module].read_text())
    assert module.startswith("lowering") or not found, f"gradx.{module} knows of {set(found)}"


@every_module
def test_a_module_is_one_idea(module: str) -> None:
    lines = len(MODULES[module].read_text().splitlines())
    assert lines <= 400, f"gradx.{module} has {lines} lines: past 400 it is two ideas"


# ---------------------------------------------------------------- the public names


def public() -> dict[str, tuple[str, Any]]:
    """Every public name with the module that lists it in `__all__`."""
    found: dict[str, tuple[str, Any]] = {}
    for module in MODULES:
        if module in ("", "experimental.aggregating", *NAMESPACES):
            continue  # they list what stands elsewhere
        loaded = importlib.import_module(f"gradx.{module}")
        for name in getattr(loaded, "__all__", []):
            assert name not in found, f"{name} is public in gradx.{module} and {found[name][0]}"
            found[name] = (module, getattr(loaded, name))
    return found


PUBLIC = public()
FUNCTIONS = {
    name: made
    for name, (_, made) in PUBLIC.items()
    if inspect.isfunction(made) or core.REGISTRY.get(name) is made  # a class can be a factory
}
FACTORIES = {name: made for name, made in FUNCTIONS.items() if core.REGISTRY.get(name) is made}
TRANSFORMS = [
    name
    for name, f in FACTORIES.items()
    if inspect.isclass(f) or f.__annotations__["return"] == "Transform"
]
OPTIMIZERS = [name for name in TRANSFORMS if PUBLIC[name][0].startswith("optimizers.")]
STATES = {
    name: made
    for name, (_, made) in PUBLIC.items()
    if inspect.isclass(made)
    and issubclass(made, tuple)
    and not issubclass(made, gradx.GradientTransformation)
}


def section(doc: str, title: str) -> str:
    """The indented lines under a title such as ``Args:``."""
    match = re.search(rf"^{title}:\n((?:  .*\n|\n)*)", doc + "\n", re.MULTILINE)
    return match.group(1) if match else ""


def entries(doc: str, title: str) -> list[str]:
    """The names that a section explains, as in ``  *args: …`` or ``  b1, b2: …``."""
    found = re.findall(r"^  \*{0,2}(\w+(?:,\s+\w+)*): \S", section(doc, title), re.MULTILINE)
    return [name for together in found for name in re.split(r",\s+", together)]


def test_every_public_name_is_in_gradx_once() -> None:
    """Flat, under its own name, and no module of the same name hides it. What Optax may still
    change stands where Optax has it."""
    for name, (module, made) in PUBLIC.items():
        home = gradx.experimental.aggregating if module.startswith("experimental.") else gradx
        assert getattr(home, name) is made, f"{home.__name__}.{name} is not that of gradx.{module}"
    assert len(TRANSFORMS) > 30  # the tables above do find them
    assert set(OPTIMIZERS) < set(TRANSFORMS) < set(FACTORIES) < set(FUNCTIONS)


def test_every_recorded_factory_is_public() -> None:
    """Configs and reprs name factories, so a user must be able to write those names."""
    assert {name for name in core.REGISTRY if ":" not in name} == set(FACTORIES)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_has_a_docstring(name: str) -> None:
    module, made = PUBLIC[name]
    if module == "contract" and not inspect.isfunction(made):  # Optax's: a table explains them
        rows = re.findall(r"^`(\w+)` +(\S.*)$", gradx.contract.__doc__ or "", re.MULTILINE)
        assert name in dict(rows)
        return
    if isinstance(made, type) or callable(made):
        doc = inspect.getdoc(made) or ""
    else:  # an alias has no docstring of its own; a string stands after it
        doc = MODULES[module].read_text().partition(f"\n{name}: TypeAlias = ")[2].split("\n")[1]
        doc = doc.strip('"')
    assert re.match(r"[A-Z`].*\.(\n|$)", doc.split("\n\n")[0].replace("\n", " ")), doc


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_has_an_example_and_explains_its_arguments(name: str) -> None:
    doc = inspect.getdoc(FUNCTIONS[name]) or ""
    assert ">>> " in section(doc, "Example")
    assert entries(doc, "Args") == list(inspect.signature(FUNCTIONS[name]).parameters)


@pytest.mark.parametrize("name", FACTORIES)
def test_every_factory_is_typed(name: str) -> None:
    signature = inspect.signature(FACTORIES[name])
    untyped = [n for n, p in signature.parameters.items() if p.annotation is inspect._empty]
    assert not untyped
    assert signature.return_annotation is not inspect.Signature.empty


@pytest.mark.parametrize("name", TRANSFORMS)
def test_every_transformation_shows_its_maths(name: str) -> None:
    doc = inspect.getdoc(FACTORIES[name]) or ""
    assert re.search(r"^\.\. math::(.+|\n    \S)", doc, re.MULTILINE)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_rule_gives_its_source(name: str) -> None:
    doc = inspect.getdoc(FACTORIES[name]) or ""
    reference = doc.partition("\nReference: ")[2]
    assert re.search(r"\b(19|20)\d\d\b|https://", reference)


@pytest.mark.parametrize("name", STATES)
def test_every_state_explains_its_fields(name: str) -> None:
    assert entries(inspect.getdoc(STATES[name]) or "", "Attributes") == list(STATES[name]._fields)


# ---------------------------------------------------------------- where modules were


def test_what_was_pickled_under_an_old_name_loads() -> None:
    """As a state does, whose class pickle looks for in the module where it was."""
    for old, new in moved.MOVED.items():
        assert importlib.util.find_spec(f"gradx.{new}") is not None
        assert old not in MODULES
    old = b"cgradx.moments\nScaleByAdamState\n."  # pickle's protocol 0
    assert pickle.loads(old) is gradx.ScaleByAdamState
    assert pickle.loads(b"cgradx.numbers.sources\nby_path\n.") is gradx.by_path
    with pytest.raises(AttributeError, match="nothing"):
        gradx.numbers.sources.nothing  # noqa: B018
    assert pickle.loads(b"cgradx.rules.muon\nMuonState\n.") is gradx.MuonState
    assert pickle.loads(b"cgradx.scale\nScaleByScheduleState\n.") is gradx.ScaleByScheduleState
    assert gradx.scale(2.0).init(None) == gradx.EmptyState()  # no module is in its place
    with pytest.raises(AttributeError, match=r"gradx.moments .* moved to gradx.pieces.moments"):
        getattr(importlib.import_module("gradx.moments"), "nothing")  # noqa: B009


# ---------------------------------------------------------------- what importing it costs

# Seconds are noise on a busy machine; modules are not.
IMPORT = """
import sys
import jax, optax
before = set(sys.modules)
import gradx
new = {name for name in sys.modules if name not in before}
assert not {"gradx.contrib", "gradx.losses", "gradx.experimental"} & new  # not before somebody asks
print(*sorted(name for name in new if name.split(".")[0] != "gradx"))
"""

# `jax.distributed.initialize` and this setting are refused once a backend runs, so a library
# that computes at import takes them away from its users. The last line shows that the first
# assertion can fail.
UNTOUCHED = """
import gradx, jax
jax.config.update("jax_num_cpu_devices", 3)
assert jax.device_count("cpu") == 3
try:
    jax.config.update("jax_num_cpu_devices", 4)
except RuntimeError:
    print("untouched")
"""


def fresh_python(code: str) -> str:
    # Without the flag of conftest.py, which sets the number of devices too.
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_gradx_adds_next_to_nothing_to_jax_and_optax() -> None:
    added = fresh_python(IMPORT).split()
    heavy = {"flax", "matplotlib", "sklearn", "tqdm", "orbax", "hypothesis", "torch", "scipy"}
    assert not heavy & {name.split(".")[0] for name in added}
    assert len(added) <= 5, added


def test_importing_gradx_starts_no_backend() -> None:
    assert fresh_python(UNTOUCHED) == "untouched"
