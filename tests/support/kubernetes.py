"""What kustomize builds of k8s/, as the objects that a cluster would be given, and the tools that look at them."""

import functools
import os
import shutil
import sys
import tomllib
from pathlib import Path
from typing import Any

import yaml

from tests.support.paths import ROOT
from tests.support.processes import run_process, skip_without

K8S = ROOT / "k8s"
VERSION: str = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
Object = dict[str, Any]
"""One Kubernetes object, as its YAML says it."""


def tool(name: str) -> str:
    """Return the path of an executable beside this Python or on the PATH; skips, or fails if it is required."""
    program = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        skip_without(name, f"{name} is not here (make k8s-check brings it where it can)")
    return program


@functools.cache
def build(folder: str) -> str:
    """Return the YAML that kustomize builds of a folder below k8s/, as `overlays/dev`."""
    done = run_process(tool("kustomize"), "build", K8S / folder)
    return done.stdout


def built(folder: str) -> list[Object]:
    """Return the objects that kustomize builds of a folder below k8s/; each caller gets a copy."""
    # libyaml, ten times as fast as the loader in Python
    return [resource for resource in yaml.load_all(build(folder), yaml.CSafeLoader) if resource]
