"""`deftx doctor`: what is installed, what a training would run on, and whether a base and vectors
fit each other."""

import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

import torch
from transformers import PreTrainedModel

from deftx.config import LanguageVectorConfig
from deftx.core.apply import check_fit
from deftx.core.parameters import parameter_groups
from deftx.core.select import parse_k
from deftx.core.vector import SparseVector
from deftx.errors import DeftxError
from deftx.experiments.estimate import FLOAT, phase1_numbers
from deftx.models.compose import task_type
from deftx.models.fingerprint import check_base, fingerprint
from deftx.models.heads import check_head
from deftx.models.limits import longest_input
from deftx.models.loading import load_encoder, load_language_model, skeleton
from deftx.models.tokenizers import check_tokenizer, load_tokenizer
from deftx.storage.hub_client import plain_errors
from deftx.storage.vector_files import load
from deftx.training.precision import bf16_pays

PACKAGES = ("deftx", "torch", "transformers", "tokenizers", "safetensors", "huggingface_hub")
OURS = {"dev", "docs", "neighbours"}  # extras that only work on deftx itself needs
PATIENCE = 5  # seconds that the hub is given to answer


@dataclass(frozen=True)
class Finding:
    """One line of what was found out.

    Attributes:
        topic: What it is about.
        says: What was found out, and what to do where something does not fit.
        fine: Whether everything fits.
    """

    topic: str
    says: str
    fine: bool = True


def examine(base: str | None = None, vectors: Sequence[str] = ()) -> list[Finding]:
    """All that is found out about this installation, this machine, the hub, and a base and vectors.

    Args:
        base: Folder or hub id of a base; None: nothing is said of one.
        vectors: Folders or hub ids of vectors that are to fit it.

    Raises:
        DeftxError: There are vectors and no base.
    """
    if vectors and base is None:
        raise DeftxError("say what the vectors are to fit: give --base")
    about_base: list[Finding] = []
    if base is not None:
        about_base = list(_about_base(base, vectors))
    return [*_installed(), *_machine(), Finding("hub", _hub()), *about_base]


def _installed() -> Iterator[Finding]:
    """Versions, and which extras are there."""
    versions = [f"{name} {version(name)}" for name in PACKAGES]
    python = f"Python {platform.python_version()}"
    yield Finding("installed", f"{', '.join(versions)}, {python}")

    # The packages of each extra
    packages_of: dict[str, list[str]] = {}
    for requirement in distribution("deftx").requires or []:
        match = re.match(r"([\w.-]+).*\bextra == ['\"](\w+)", requirement)
        if match:
            package, extra = match.groups()
            packages_of.setdefault(extra, []).append(package)

    for extra in sorted(packages_of.keys() - OURS):
        lacking = [name for name in packages_of[extra] if not _is_installed(name)]
        says = "installed"
        if lacking:
            says = f"lacks {', '.join(lacking)}: pip install 'deftx[{extra}]' to use it"
        yield Finding(f"extra {extra}", says)


def _is_installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


def _machine() -> Iterator[Finding]:
    """Device, precision, memory and disk."""
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(kind)
    cores = f"{os.cpu_count()} cores, of which torch uses {torch.get_num_threads()}"
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
        yield Finding("device", f"{torch.cuda.get_device_name(device)} with {_gb(memory)}; {cores}")
    else:
        yield Finding("device", f"CPU (torch finds no GPU); {cores}")
    yield Finding("precision", _precision(device))
    yield Finding("memory", _memory())
    free_disk = shutil.disk_usage(".").free
    yield Finding("disk", f"{_gb(free_disk)} free in {Path.cwd()}")


def _precision(device: torch.device) -> str:
    """What `training.precision=auto` takes, and why."""
    if bf16_pays(device):
        return "bf16, which this device multiplies faster than fp32"
    why = "this GPU has no bf16" if device.type == "cuda" else "the processor has no amx_bf16"
    return f"fp32, for {why}"


def _memory() -> str:
    """How much there is and how much of it is free, as far as the system tells."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        sizes = {line.split(":")[0]: 1024 * int(line.split()[1]) for line in lines}
        return f"{_gb(sizes['MemTotal'])}, of which {_gb(sizes['MemAvailable'])} are free"
    except (OSError, KeyError, ValueError):
        return (
            f"{_gb(os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE'))}"
            if hasattr(os, "sysconf")
            else "unknown"
        )


def _hub() -> str:
    """Whether the hub can be had; folders on the disk do without it."""
    from huggingface_hub import constants, get_session, get_token

    if constants.HF_HUB_OFFLINE:
        return f"offline mode is on (HF_HUB_OFFLINE): only what is in {constants.HF_HUB_CACHE}"
    try:
        with plain_errors("not to be reached", ""):
            get_session().head(constants.ENDPOINT, timeout=PATIENCE)
    except DeftxError as error:
        return f"{error}; until then only what is in {constants.HF_HUB_CACHE}"
    login = "a token is there" if get_token() else "nobody is logged in"
    return f"{constants.ENDPOINT} answers; {login}"


def _about_base(base: str, vectors: Sequence[str]) -> Iterator[Finding]:
    """What a base can be used for, which vectors fit it, and what a training on it takes."""
    # A base without a language model may still do for tasks.
    problem = None
    try:
        model = load_language_model(base)
    except DeftxError as error:
        problem = Finding("base", str(error), fine=False)
        try:
            model = load_encoder(base)
        except DeftxError as worse:
            yield Finding("base", str(worse), fine=False)
            return

    tokenizer = load_tokenizer(base)
    base_fingerprint = fingerprint(model)
    count = sum(weight.numel() for weight in model.parameters())
    longest = longest_input(model, tokenizer)
    yield Finding(
        "base",
        f"{base} ({base_fingerprint[:12]}): {type(model).__name__}, {count:,} parameters, at most"
        f" {longest} tokens",
    )
    if problem is not None:
        yield problem

    def check(vector: SparseVector) -> None:
        check_base(base_fingerprint, vector)
        check_tokenizer(tokenizer, vector)
        check_fit(model, vector)
        if vector.head is not None:
            _check_head(base, vector)

    for name in vectors:
        yield _checked(name, check)
    yield from _needed(model)


def _checked(name: str, check: Callable[[SparseVector], None]) -> Finding:
    """Whether a vector can be loaded and passes a check."""
    try:
        vector = load(name)
        check(vector)
    except DeftxError as error:
        return Finding(name, str(error), fine=False)
    labels = f", for {', '.join(vector.head.labels)}" if vector.head else ""
    return Finding(name, f"fits: {vector.provenance.kind or 'a'} vector, k = {vector.k:,}{labels}")


def _check_head(base: str, vector: SparseVector) -> None:
    """Raise DeftxError where the base's model for a vector's task is of another form than its
    head."""
    assert vector.head is not None
    task = task_type(vector)
    if task.auto_model_class is None:  # the base's own language model, whose head is no vector's
        return
    settings = dict(task.config)
    if vector.head.labels:
        settings["num_labels"] = len(vector.head.labels)
    model = skeleton(base, task.auto_model_class, **settings)
    check_head(model, (), vector.head.tensors)
    check_fit(model, vector)


def _needed(model: PreTrainedModel) -> Iterator[Finding]:
    """The memory that the two phases hold at most, without what a batch takes.

    Phase 1: see `phase1_numbers`. Phase 2: the weights, their start and the denoised delta, one
    dense gradient at a time, and eight numbers for each of the k entries.
    """
    every = sum(weight.numel() for weight in model.parameters())
    sizes = [weight.numel() for weight in parameter_groups(model).trainable.values()]
    trainable = sum(sizes)
    k = parse_k(LanguageVectorConfig().k, trainable)
    first = phase1_numbers(every, trainable)
    second = every + 2 * trainable + max(sizes) + 8 * k
    yield Finding(
        "phase 1",
        f"at most {_gb(FLOAT * first)} of memory, and what a batch takes; less where the text uses"
        " few of the tokens",
    )
    yield Finding(
        "phase 2", f"at most {_gb(FLOAT * second)} with k = {k:,}, and what a batch takes"
    )


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
