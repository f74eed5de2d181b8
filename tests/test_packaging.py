"""What is built holds `diffcore` alone, each file once, and works where neither torch nor JAX is installed."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from diffcore.backends import cpu_threads

ROOT = Path(__file__).resolve().parent.parent

PLACES = {"diffcore": "diffcore", "diffcore.backends": "backends", "diffcore.unet3d": "unet3d"}
SOURCES = ("diffcore", "backends", "unet3d", "tests", "benchmarks")
TEXTS = ("pyproject.toml", "constraints.txt", "README.md", "LICENSE", "CHANGELOG.md", "MANIFEST.in")


def _run(*command: str | Path, cwd: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}\n{done.stderr}"
    return done


def _project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def _modules_on_disk() -> dict[str, Path]:
    """Every Python file, stub, type marker and shipped model of the packages, by the path that it is installed under."""
    found = {}
    for package, folder in PLACES.items():
        for path in (ROOT / folder).rglob("*"):  # does not follow the symlinks inside diffcore/
            if path.suffix in {".py", ".pyi"} or path.name == "py.typed" or path.name.startswith("moving_digits"):
                found[f"{package.replace('.', '/')}/{path.relative_to(ROOT / folder).as_posix()}"] = path
    return found


class Built(NamedTuple):
    """A wheel and a source archive, and the files in each: name -> content."""

    wheel: Path
    in_wheel: dict[str, bytes]
    in_sdist: dict[str, bytes]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Build in a copy, with symlinks kept, a source archive and from that a wheel, as `python -m build` does."""
    pytest.importorskip("build")
    here = tmp_path_factory.mktemp("checkout")
    out = here / "out"
    skip = shutil.ignore_patterns("__pycache__", "*.egg-info", "*.so")
    for folder in SOURCES:
        shutil.copytree(ROOT / folder, here / folder, symlinks=True, ignore=skip)
    for text in TEXTS:
        shutil.copy(ROOT / text, here / text)
    _run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, here, cwd=here)
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}
    in_sdist = {}
    with tarfile.open(sdist) as tar:
        for member in tar.getmembers():
            assert not member.issym(), f"{member.name} is a symlink"
            if member.isfile():
                content = tar.extractfile(member)
                assert content is not None
                in_sdist[member.name.split("/", 1)[1]] = content.read()
    return Built(wheel, in_wheel, in_sdist)


def test_listed_packages_are_the_folders_on_disk() -> None:
    folders = {
        ".".join([package, *path.parent.relative_to(ROOT / folder).parts])
        for package, folder in PLACES.items()
        for path in (ROOT / folder).rglob("__init__.py")
    }
    assert set(_project()["tool"]["setuptools"]["packages"]) == folders
    assert _project()["tool"]["setuptools"]["package-dir"] == PLACES


def test_symlinks_show_the_top_level_packages_inside_diffcore() -> None:
    for package, folder in PLACES.items():
        inside = ROOT / package.replace(".", "/")
        assert inside.resolve() == ROOT / folder
        assert inside.is_symlink() == (package != "diffcore")


def test_no_file_hides_a_library() -> None:
    hidden = {"torch.py", "jax.py", "numpy.py", "scipy.py"}
    assert not hidden & {path.name for path in _modules_on_disk().values()}
    assert not hidden & {path.name for path in ROOT.glob("*.py")}


@pytest.mark.slow
def test_wheel_holds_diffcore_alone_and_each_file_once(built: Built) -> None:
    information = "-".join(built.wheel.name.split("-")[:2]) + ".dist-info"
    assert {name.split("/")[0] for name in built.in_wheel} == {"diffcore", information}
    packed = {name: content for name, content in built.in_wheel.items() if name.startswith("diffcore/")}
    compiled = [packed.pop(name) for name in list(packed) if Path(name).suffix in {".so", ".pyd"}]
    assert len(compiled) == (cpu_threads.kernel is not None)
    assert packed == {name: path.read_bytes() for name, path in _modules_on_disk().items()}


@pytest.mark.parametrize("package", PLACES)
def test_packages_are_marked_as_typed(built: Built, package: str) -> None:
    assert f"{package.replace('.', '/')}/py.typed" in built.in_wheel


def test_source_archive_holds_what_the_wheel_holds_and_the_tests(built: Built) -> None:
    modules = _modules_on_disk()
    for path in modules.values():
        name = path.relative_to(ROOT).as_posix()
        assert built.in_sdist[name] == path.read_bytes()
    assert not [name for name in built.in_sdist if name.startswith(("diffcore/backends", "diffcore/unet3d"))]
    for name in ("backends/cpu_kernel.c", "backends/cpu_stage.h", "backends/cpu_xla.h"):
        assert built.in_sdist[name] == (ROOT / name).read_bytes()
    assert not [name for name in built.in_sdist if name.endswith((".so", ".pyd"))]
    for name in ("LICENSE", "README.md", "pyproject.toml", "tests/conftest.py", "tests/test_packaging.py"):
        assert name in built.in_sdist


def test_entry_points_name_backends_that_exist(built: Built) -> None:
    declared = _project()["project"]["entry-points"]["diffcore.backends"]
    assert set(declared) == {"numpy", "torch", "jax"}
    for library, value in declared.items():
        module, attribute = value.split(":")
        assert module.replace(".", "/") + ".py" in built.in_wheel
        if importlib.util.find_spec(library) is not None:
            assert hasattr(importlib.import_module(module), attribute)


def test_version_is_one() -> None:
    import diffcore

    assert re.fullmatch(r"\d+\.\d+\.\d+", diffcore.__version__)
    assert f"## {diffcore.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    try:
        installed = importlib.metadata.version("diffcore")
    except importlib.metadata.PackageNotFoundError:
        return  # a checkout that is not installed
    assert installed == diffcore.__version__


@pytest.mark.parametrize("folder", ["backends", "unet3d"])
def test_a_package_refuses_to_be_imported_by_the_name_of_its_folder(folder: str) -> None:
    command = [sys.executable, "-c", f"import {folder}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError:")
    assert f"import diffcore.{folder}" in last


WITHOUT_FRAMEWORKS = """
import importlib.metadata, importlib.util, pathlib, sys

for library in ("torch", "jax"):
    assert importlib.util.find_spec(library) is None, library

import numpy as np
import diffcore as dc

assert str(pathlib.Path(dc.__file__).resolve()).startswith(sys.argv[1]), dc.__file__
assert importlib.metadata.version("diffcore") == dc.__version__
schedule = dc.schedules.Cosine()
plan = dc.samplers.ancestral(schedule, steps=8)
like = np.zeros(1, dtype=np.float32)
both = dc.sample(lambda z, log_snr: z / 2, plan, shape=(2, 4, 3), like=like, seed=[7, 8], prediction="eps")
assert both.shape == (2, 4, 3) and both.dtype == np.float32 and np.isfinite(both).all()
one = dc.sample(lambda z, log_snr: z / 2, plan, shape=(1, 4, 3), like=like, seed=[8], prediction="eps")
assert np.array_equal(one[0], both[1])
assert dc.backends.of(like).name == "numpy"
assert {"numpy", "torch", "jax"} <= set(dc.backends.available())
for name in dc.__all__:
    try:
        getattr(dc, name)
    except ImportError as error:
        assert "diffcore[" in str(error), error
loaded = {name.split(".")[0] for name in sys.modules}
assert not loaded & {"torch", "jax"}
print("sampled")
"""


def test_wheel_samples_in_an_environment_without_torch_and_jax(built: Built, tmp_path: Path) -> None:
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    _run(*pip, "install", "--quiet", "--no-deps", "--no-index", "--target", site, built.wheel, cwd=tmp_path)
    for library in ("numpy", "scipy", "array_api_compat"):  # the dependencies that it declares, and nothing else
        spec = importlib.util.find_spec(library)
        assert spec is not None
        assert spec.origin is not None
        package = Path(spec.origin).parent
        (site / library).symlink_to(package)
        if (libraries := package.parent / f"{library}.libs").exists():
            (site / libraries.name).symlink_to(libraries)
    # -S leaves out site-packages, and -E what the environment adds, so that `site` is all there is.
    script = f"import sys; sys.path.insert(0, {str(site)!r})\n{WITHOUT_FRAMEWORKS}"
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = _run(sys.executable, "-S", "-E", "-c", script, str(site), cwd=tmp_path, env=env)
    assert done.stdout == "sampled\n"


def test_declared_dependencies_are_the_three() -> None:
    names = {re.split(r"[^a-z0-9-]", line)[0] for line in _project()["project"]["dependencies"]}
    assert names == {"array-api-compat", "numpy", "scipy"}


def test_constraints_pin_exactly_and_name_no_place() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if line[:1] != "#"]
    assert lines
    for line in lines:
        assert re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][0-9a-z.]*", line), line


def test_no_file_names_a_machine_or_a_registry() -> None:
    place = re.compile(r"(?<![\w.~/-])/(?:home|root|Users|opt|mnt|srv)/|py" + r"pi\.org|python" + r"hosted\.org")
    texts = {".py", ".pyi", ".c", ".h", ".md", ".toml", ".txt", ".json", ".yaml", ".cff", ".in"}
    files = [ROOT / "Makefile", ROOT / ".ci" / "run", *(path for path in ROOT.glob("*") if path.is_file())]
    files += [path for folder in (*SOURCES, "docs") for path in (ROOT / folder).rglob("*") if path.suffix in texts]
    for path in files:
        found = place.search(path.read_text(encoding="utf-8", errors="ignore"))
        assert found is None, f"{path.relative_to(ROOT)}: {found}"
