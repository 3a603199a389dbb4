"""deftx as users install it: the files that are published, and an environment with the wheel in it.

The environment is a new one, except for the libraries that deftx needs: they are those of the
environment that the tests run in, so that nothing is downloaded. deftx itself comes from the wheel.
"""

import os
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXTRAS = "baselines,data,plot,ray,report,serve"  # what users can add


@dataclass(frozen=True)
class Installed:
    """What was built, and where it is installed.

    Attributes:
        sdist: The archive of the sources.
        wheel: The wheel, which was built from that archive.
        programs: Folder with `python` and `deftx`.
    """

    sdist: Path
    wheel: Path
    programs: Path

    def run(
        self, *words: str, cwd: Path, timeout: int = 1200, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Carry out a command as in a terminal in which the environment is active."""
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environment["PATH"] = f"{self.programs}{os.pathsep}{environment['PATH']}"
        environment["OMP_NUM_THREADS"] = "1"
        environment["COLUMNS"] = "200"
        return subprocess.run(
            words,
            cwd=cwd,
            env={**environment, **variables},
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )


def install(folder: Path) -> Installed:
    """Build the archive and from it the wheel, and install the wheel with all its extras."""
    build = [sys.executable, "-m", "build", "--outdir", str(folder / "dist"), str(ROOT)]
    _checked(build)
    (sdist,) = (folder / "dist").glob("*.tar.gz")
    (wheel,) = (folder / "dist").glob("*.whl")
    programs = folder / "environment" / "bin"
    venv.create(folder / "environment", with_pip=False, symlinks=True)
    # A path in a .pth file is searched, but .pth files in it are not: what the tests have in
    # editable form, which is this checkout, is not found there.
    paths = {"base": str(folder / "environment"), "platbase": str(folder / "environment")}
    libraries = Path(sysconfig.get_path("purelib", "venv", paths)) / "libraries.pth"
    libraries.write_text(sysconfig.get_path("purelib"))
    pip = [sys.executable, "-m", "pip", "--python", str(programs / "python"), "install"]
    pip += ["--quiet", "--no-index"]
    # Forced, since the tests' deftx has the same version; the second time, pip checks that all
    # that the wheel and its extras need is there, in versions that they take.
    _checked([*pip, "--no-deps", "--force-reinstall", str(wheel)])
    _checked([*pip, f"{wheel}[{EXTRAS}]"])
    return Installed(sdist, wheel, programs)


def _checked(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
