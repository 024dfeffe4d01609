"""pyproject.toml, constraints.txt, environment.yml and CITATION.cff say the same about what is installed."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
CONDA_NAMES = {"huggingface-hub": "huggingface_hub", "torch": "pytorch"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def wanted(project: dict) -> dict[str, SpecifierSet]:
    """What pyproject.toml asks for, extras included."""
    extras = project.get("optional-dependencies", {}).values()
    requirements = map(Requirement, [*project["dependencies"], *(line for extra in extras for line in extra)])
    return {canonicalize_name(r.name): r.specifier for r in requirements}


def pins(constraints: str) -> dict[str, str]:
    """The lines `name==version` of constraints.txt; any other line is an error."""
    lines = [line for line in constraints.splitlines() if line and not line.startswith("#")]
    found = dict(line.split("==") for line in lines)
    assert len(found) == len(lines), "a package is pinned twice"
    return {canonicalize_name(name): version for name, version in found.items()}


def conda_pins(environment: str) -> dict[str, SpecifierSet]:
    """The packages of environment.yml, those under pip too; conda's `name=1.2.*` is read as `name==1.2.*`."""
    rows = yaml.safe_load(environment)["dependencies"]
    rows = [row for row in rows if isinstance(row, str)] + next(row["pip"] for row in rows if isinstance(row, dict))
    parts = [re.fullmatch(r"([\w.-]+)(.*)", row).groups() for row in rows if not row.startswith("-e")]
    return {name: SpecifierSet(re.sub(r"^=(?!=)", "==", pin)) for name, pin in parts}


def disagreements(project: dict, constraints: str, environment: str) -> list[str]:
    pinned, conda = pins(constraints), conda_pins(environment)
    complaints = []
    for name, specifier in wanted(project).items():
        conda_name = CONDA_NAMES.get(name, name)
        if name not in pinned:
            complaints.append(f"{name}: not in constraints.txt")
        elif pinned[name] not in specifier:
            complaints.append(f"{name}: constraints.txt has {pinned[name]}, pyproject.toml asks for {specifier}")
        elif conda_name not in conda:
            complaints.append(f"{name}: {conda_name} is not in environment.yml")
        elif not conda[conda_name]:
            complaints.append(f"{name}: environment.yml does not pin it")
        elif pinned[name] not in conda[conda_name]:
            complaints.append(f"{name}: environment.yml has {conda[conda_name]}, constraints.txt {pinned[name]}")
    return complaints


def test_the_three_files_agree():
    constraints, environment = (ROOT / "constraints.txt").read_text(), (ROOT / "environment.yml").read_text()
    assert disagreements(PROJECT, constraints, environment) == []


def test_constraints_fit_every_index():
    constraints = (ROOT / "constraints.txt").read_text()
    for name, version in pins(constraints).items():
        assert Version(version).local is None, f"{name}=={version} exists on one index only"
    assert not re.search(r"^-|://", constraints, flags=re.MULTILINE)


def test_python_versions_agree():
    conda = conda_pins((ROOT / "environment.yml").read_text())["python"]
    assert "3.11.9" in conda
    assert "3.11.9" in SpecifierSet(PROJECT["requires-python"])


def test_citation_has_the_version():
    assert str(yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"]) == PROJECT["version"]


GOOD = (
    {"dependencies": ["torch>=2.9"], "optional-dependencies": {"test": ["pyyaml>=6"]}},
    "# how\ntorch==2.13.0\npyyaml==6.0.3\n",
    "dependencies: [pytorch=2.13.*, {pip: [pyyaml==6.0.*, -e .]}]",
)


def test_a_good_project_is_accepted():
    assert disagreements(*GOOD) == []


@pytest.mark.parametrize(
    ("part", "old", "new", "complaint"),
    [
        (1, "pyyaml==6.0.3", "", "not in constraints.txt"),
        (1, "2.13.0", "2.8.0", "pyproject.toml asks for"),
        (2, "pytorch", "torch", "is not in environment.yml"),
        (2, "pytorch=2.13.*", "pytorch", "does not pin"),
        (2, "2.13.*", "2.12.*", "constraints.txt 2.13.0"),
    ],
)
def test_a_disagreement_is_seen(part, old, new, complaint):
    bad = list(GOOD)
    bad[part] = bad[part].replace(old, new)
    (seen,) = disagreements(*bad)
    assert complaint in seen
