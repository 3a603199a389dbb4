"""What all tests share: no network, one thread, quiet libraries, and a tiny base of each shape."""

import gc
import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read when the libraries are imported

import pytest
import tiny
import torch
import transformers
from hypothesis import settings

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(1)
settings.register_profile("steady", deadline=None)  # a busy machine is no failure
settings.load_profile("steady")


@pytest.fixture(scope="session", autouse=True)
def _quick_collections():
    """The Trainer collects garbage at each start: not among all that the libraries hold for good."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def bases(tmp_path_factory):
    """The folder of a tiny base by the name of its shape, saved once."""
    folders = {}

    def folder(shape="xlmr"):
        if shape not in folders:
            folders[shape] = str(tiny.save_base(tmp_path_factory.mktemp("bases") / shape, shape))
        return folders[shape]

    return folder
