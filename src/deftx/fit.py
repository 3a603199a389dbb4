"""The method, top to bottom (DeFT-X, Simon and Jyothi 2025, Algorithm 1). Read this file first.

    fit       full fine-tuning -> denoise -> select -> sparse fine-tuning: one sparse vector
    transfer  a source language, a task and a target language: θ0 + φ_task + φ_target

`fit` works on a loaded model at θ0. `fit_language` and `fit_task` load the base, prepare the data, call
it, and note where the vector came from.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from deftx.core.backbone import backbone, head, tunable
from deftx.core.compose import apply
from deftx.core.denoise import Denoised, denoise
from deftx.core.ranks import rank_rule
from deftx.core.select import digest, parse_k, select
from deftx.core.vector import Head, SparseVector, check_language
from deftx.errors import DeftxError, Diverged, unknown
from deftx.models import (
    Base,
    about_tokenizer,
    check_tokenizer,
    compose,
    load_classifier,
    load_masked_lm,
    load_tokenizer,
    longest_input,
    place,
)
from deftx.settings import Fit, LanguageFit, TaskFit
from deftx.storage.delta import load_delta, save_delta
from deftx.storage.fingerprint import check_base, fingerprint
from deftx.tasks.classification import classification, label_names
from deftx.tasks.data import Examples
from deftx.tasks.masked_lm import masked_lm
from deftx.training import processes
from deftx.training.checkpoint import Kept
from deftx.training.loop import Moving, Objective, train
from deftx.training.rows import rows_apart
from deftx.training.sparse import sparse_tuning

Delta = Mapping[str, Tensor]

# What happens to θ1 − θ0 before the selection: the methods differ in nothing else.
METHODS: dict[str, Callable[[Delta, Fit], Denoised]] = {
    "deftx": lambda delta, settings: denoise(delta, settings.rank, settings.keep),  # Simon and Jyothi 2025
    "lt-sft": lambda delta, settings: Denoised(delta, {}),  # Ansell et al. 2022
}


def fit(
    model: PreTrainedModel, objective: Objective, settings: Fit, *, work: Path | None = None, title: str = ""
) -> SparseVector:
    """Learn a sparse vector (Algorithm 1). Leaves the model's backbone at θ2 and its head trained.

    model  at θ0. Its layer norms stay as they are; what lies outside the backbone is tuned fully where it
           requires a gradient (a task's head), from the same start in both phases
    work   folder for what phase 1 learnt and for the state of a phase that is under way, so that nothing is learnt
           again by a run that was stopped or one of another method, rank or k; without it nothing is kept

    Raises DeftxError before any training where a setting is out of range, and Diverged, the last good state
    being kept in `work`, where a loss is not finite.
    """
    body, top = tunable(model), [parameter for parameter in head(model).values() if parameter.requires_grad]
    _check(settings, sum(weight.numel() for weight in body.values()), bool(top))
    for name, weight in backbone(model).items():
        weight.requires_grad_(name in body)
    theta0 = {name: weight.detach().clone() for name, weight in body.items()}
    top0 = [parameter.detach().clone() for parameter in top]
    keep = work if processes.first() else None  # of several processes one writes

    def phase(number: int, moving: Moving, key: str) -> dict[str, Any]:
        named, kept = f"{title}: phase {number}", Kept(work / f"phase{number}.state.safetensors", key) if work else None
        return asdict(train(model, objective, settings.training, moving, seed=settings.seed, title=named, kept=kept))

    @contextmanager
    def last_good_kept(number: int) -> Iterator[None]:
        try:
            yield
        except Diverged as error:
            learnt = _difference(body, theta0)
            if keep is None or not any(difference.any() for difference in learnt.values()):
                raise
            save_delta(last := keep / "last-good.safetensors", learnt, {"phase": number})
            raise Diverged(f"{error}; the change of the weights up to there is in {last}") from None

    # Phase 1: θ1 = full fine-tuning of θ0;  δ = θ1 − θ0
    key = _key(model, objective, settings)
    done = load_delta(work / "phase1.safetensors", key) if work else None
    processes.see_alike(work, done is not None)
    if done is not None:
        delta, log = {name: done[0][name] for name in theta0}, done[1]["log"]  # the order decides ties
    else:
        with last_good_kept(1), rows_apart(model, objective.tokens) as rows:
            moving = [rows.values if rows and weight is rows.weight else weight for weight in body.values()]
            log = phase(1, Moving(moving, [weight.detach().clone() for weight in moving], top), key)
        delta = _difference(body, theta0)
        if keep is not None:
            save_delta(keep / "phase1.safetensors", delta, {"key": key, "log": log})
            (keep / "phase1.state.safetensors").unlink(missing_ok=True)
        _put([*body.values(), *top], [*theta0.values(), *top0])

    # Denoise:  δ ← L + S, matrix by matrix;  select:  μ = the k largest entries of δ
    denoised = METHODS[settings.method](delta, settings)
    del delta  # as large as the model
    selection = processes.agreed(select(denoised, settings.k))

    # Phase 2: θ2 = fine-tuning of θ0, only the entries in μ moving;  φ = θ2 − θ0
    with last_good_kept(2), sparse_tuning(model, selection) as tuning:
        flat = Moving([tuning.values], [tuning.start], top, placed=tuning.write)
        sparse_log = phase(2, flat, f"{key} {digest(selection)}")
        phi = tuning.vector()
    info = {
        **settings.deciding(),
        "k": phi.k,
        "ranks": dict(denoised.ranks),
        "log": {"phase1": log, "phase2": sparse_log},
    }
    return replace(phi, info=info)


def fit_language(
    base: Base, text: Sequence[str], settings: LanguageFit, *, work: Path | None = None, title: str = "language"
) -> SparseVector:
    """φ_language = fit(text, masked language modelling, θ0), from the lines of a language's plain text."""
    processes.join()
    model, tokenizer = load_masked_lm(base), load_tokenizer(base)
    place(model)
    origin = _origin("language", base, fingerprint(model), about_tokenizer(tokenizer))
    length = min(settings.training.length, longest_input(model, tokenizer))
    objective = masked_lm(text, tokenizer, settings.training, length, settings.seed)
    vector = fit(model, objective, settings, work=work, title=title)
    return replace(vector, info={**origin, **vector.info, "data": {"lines": len(text), "digest": objective.digest}})


def fit_task(
    base: Base,
    train_set: Examples,
    valid_set: Examples,
    settings: TaskFit,
    *,
    source: SparseVector | None = None,
    force: bool = False,
    work: Path | None = None,
    title: str = "task",
) -> SparseVector:
    """φ_task = fit(labelled data, task loss, θ0 + φ_source), with the task's head.

    source  the language vector of the labelled data's language; φ_task is measured from θ0 + φ_source,
            so that any other language vector can take its place. None: from θ0
    force   go on, with a warning, where `source` was made on other weights than the base's
    """
    processes.join()
    check_language(*([source] if source else []))
    labels, tokenizer = label_names(train_set), load_tokenizer(base)
    model = load_classifier(base, labels, settings.seed)
    place(model)
    origin = _origin("task", base, fingerprint(model), about_tokenizer(tokenizer))
    if source is not None:
        check_base(origin["base_fingerprint"], source, force=force)
        check_tokenizer(tokenizer, source, force=force)
        apply(model, source)
    length = min(settings.training.length, longest_input(model, tokenizer))
    objective = classification(train_set, valid_set, labels, tokenizer, length, settings.training.metric)
    vector = fit(model, objective, settings, work=work, title=title)
    top = Head({name: parameter.detach().cpu().clone() for name, parameter in head(model).items()}, labels)
    about = {"source": dict(source.info) if source else None, "labels": list(labels)}
    data = {"train": len(train_set.texts), "valid": len(valid_set.texts), "digest": objective.digest}
    return replace(vector, head=top, info={**origin, **vector.info, **about, "data": data})


def transfer(
    base: Base,
    source_text: Sequence[str],
    target_text: Sequence[str],
    train_set: Examples,
    valid_set: Examples,
    language: LanguageFit | None = None,
    task: TaskFit | None = None,
) -> PreTrainedModel:
    """The whole method: a classifier for the target language, from labelled data of the source language."""
    language, task = language or LanguageFit(), task or TaskFit()
    phi_source = fit_language(base, source_text, language, title="source language")
    phi_task = fit_task(base, train_set, valid_set, task, source=phi_source)
    phi_target = fit_language(base, target_text, language, title="target language")
    return compose(base, phi_task, phi_target)


def _check(settings: Fit, tunable_entries: int, has_head: bool) -> None:
    """Raise DeftxError now for what would only come to light after hours of phase 1."""
    if settings.method not in METHODS:
        raise unknown("method", settings.method, METHODS)
    rank_rule(settings.rank)
    if parse_k(settings.k, tunable_entries) == 0 and not has_head:
        raise DeftxError(f"k = {settings.k} leaves nothing to learn: give at least 1")


def _difference(weights: Delta, theta0: Delta) -> dict[str, Tensor]:
    return {name: weight.detach() - theta0[name] for name, weight in weights.items()}


@torch.no_grad()
def _put(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)


def _key(model: PreTrainedModel, objective: Objective, settings: Fit) -> str:
    """Names everything that determines the result of phase 1."""
    training = settings.training.model_dump(mode="json", exclude={"report_to", "logs"})
    config = model.config.to_json_string()  # dropout and the like
    parts = [version("deftx"), fingerprint(model), config, objective.digest, training, settings.seed]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _origin(kind: str, base: Base, base_fingerprint: str, tokenizer: Mapping[str, str]) -> dict[str, Any]:
    versions = {package: version(package) for package in ("deftx", "torch", "transformers")}
    name = os.fspath(base)
    if os.path.isdir(name) and not (os.path.isabs(name) or name.startswith(".")):
        name = f"./{name}"  # lest a folder be taken for a hub id where it is not at hand
    made_on = {"base": name, "base_fingerprint": base_fingerprint, "tokenizer": tokenizer}
    return {"kind": kind, **made_on, "versions": versions}
