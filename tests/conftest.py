"""What all tests share: no network, one thread, quiet libraries, and a tiny base of each shape."""

import gc
import os
import pickle

os.environ["HF_HUB_OFFLINE"] = "1"  # read when the libraries are imported

import built
import hub_server
import huggingface_hub
import pytest
import tiny
import torch
import transformers
import typed
from filelock import FileLock
from hypothesis import settings

from deftx.experiments.baselines import adapters

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(1)
settings.register_profile("steady", deadline=None)  # a busy machine is no failure
settings.load_profile("steady")


@pytest.fixture(scope="session", autouse=True)
def _quick_collections():
    """The Trainer collects garbage at each start: not among all that the libraries hold for
    good."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def run(capsys):
    """Runs a command in this process."""

    def run(*arguments):
        capsys.readouterr()
        code = typed.typed(*arguments)
        return typed.Done(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """A folder with data, two bases, and what the first commands of a user make of them."""
    return typed.make_home(tmp_path_factory.mktemp("home"))


@pytest.fixture
def here(home, tmp_path, monkeypatch):
    """An empty folder to work in; `home` is beside it, as in what users type."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home").symlink_to(home)
    return tmp_path


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A stand-in hub that the real client talks to, with an empty cache, and nobody logged in."""
    with hub_server.serving() as hub:
        settings = {
            "ENDPOINT": hub.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_OFFLINE": False,
            "HF_HUB_CACHE": str(tmp_path / "cache"),
            "HF_TOKEN_PATH": str(tmp_path / "token"),
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_DISABLE_TELEMETRY": True,
        }
        for name, value in settings.items():
            monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield hub
        huggingface_hub.close_session()


@pytest.fixture(scope="session")
def bases(tmp_path_factory):
    """The folder of a tiny base by the name of its shape, saved once."""
    folders = {}

    def folder(shape="xlmr"):
        if shape not in folders:
            folders[shape] = str(tiny.save_base(tmp_path_factory.mktemp("bases") / shape, shape))
        return folders[shape]

    return folder


@pytest.fixture
def moved(monkeypatch):
    """The names of the parameters that each training of a baseline moves, in order."""
    seen, train = [], adapters.train

    def watched(model, *args, **options):
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        trained = train(model, *args, **options)
        seen.append(
            {
                name
                for name, parameter in model.named_parameters()
                if not parameter.equal(before[name])
            }
        )
        return trained

    monkeypatch.setattr(adapters, "train", watched)
    return seen


@pytest.fixture(scope="session")
def installed(tmp_path_factory, worker_id):
    """deftx in an environment of its own, from the wheel; made once for all processes that test."""
    folder = tmp_path_factory.getbasetemp()
    if worker_id != "master":
        folder = folder.parent
    finished = folder / "installed.pickle"
    with FileLock(folder / "installed.lock"):
        if not finished.exists():
            finished.write_bytes(pickle.dumps(built.install(folder / "installed")))
        return pickle.loads(finished.read_bytes())
