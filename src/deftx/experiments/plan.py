"""The plan of a recipe: its steps, each named by a hash of everything that determines its result.

Steps with the same name are computed once, however many variants need them. Kinds of steps:

    delta    phase 1 of a fit: θ1 − θ0, shared by all methods, ranks and k. Also of each half of
             the data, for rank rules that compare two halves
    vector   the rest of a fit: denoise, select, phase 2
    given    a finished vector that the recipe names
    adapter  a fit of a baseline that learns something else than vectors
    score    a composed model on a language's test data
    ngrams   the baseline of character n-grams on a language's test data

A language vector is delta -> vector. So is a task vector, whose inputs are the vectors of its
sources too. The inputs of a score are the task vector and the language vectors that are added.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

from deftx.config import FitConfig, VectorConfig, parse
from deftx.data.examples import joined, written
from deftx.experiments.data import Data
from deftx.experiments.recipe import FAMILIES, TASK, VECTORS, Recipe
from deftx.experiments.store import Store
from deftx.tasks.normalization import normalize
from deftx.training.halves import HALVES
from deftx.training.preparation import takes_halves, takes_phase1

# Versions of the code of each kind of step, of what all task fits share, and of fits with several
# sources. Raise one when a change alters the results: stored results of older code are not used
# then.
VERSIONS = {
    "delta": 3,
    "vector": 3,
    "given": 1,
    "adapter": 3,
    "score": 1,
    "ngrams": 1,
    TASK: 2,
    "several": 2,
}

NGRAMS = "character n-grams"


@dataclass(frozen=True)
class Step:
    """One thing to compute.

    Attributes:
        kind: A key of VERSIONS that is a kind of step.
        spec: JSON-like data that determine the result, together with the inputs.
        inputs: role -> id of the step whose result is needed.
        base: Folder or hub id of the base, which `spec` names by its content.
        settings: The settings of a fit; `spec` has those that affect the result.
        title: What is computed, for people.
        cost: What the duration is proportional to among steps of a kind: optimiser steps, or
            examples.
    """

    kind: str
    spec: Mapping[str, Any]
    inputs: Mapping[str, str] = field(default_factory=dict)
    base: str = ""
    settings: FitConfig | None = None
    title: str = ""
    cost: int = 1

    @cached_property
    def id(self) -> str:
        """The name of the result: different settings, data, base or code give different names."""
        parts = [self.kind, VERSIONS[self.kind], dict(self.spec), dict(self.inputs)]
        content = json.dumps(parts, sort_keys=True).encode()
        return f"{self.kind}-{hashlib.sha256(content).hexdigest()[:16]}"

    def to_json(self) -> str:
        """The step as text, for another process."""
        data = asdict(self)
        if self.settings is not None:
            data["settings"] = self.settings.model_dump(mode="json")
        return json.dumps(data)

    @classmethod
    def from_json(cls, text: str) -> "Step":
        """The step that `to_json` wrote."""
        data = json.loads(text)
        if data["settings"] is not None:
            spec = data["spec"]
            family = FAMILIES[spec.get("family", VECTORS)]
            kind = family.language
            if spec.get("what") == TASK:
                kind = family.task
            data["settings"] = parse(kind, data["settings"])
        return cls(**data)


@dataclass(frozen=True)
class Use:
    """What needs a step: a variant with a seed, for a language or the task (`name`)."""

    variant: str
    seed: int
    name: str


@dataclass(frozen=True)
class Plan:
    """The steps of a recipe.

    Attributes:
        steps: By id, each after its inputs.
        uses: What needs each step, by the step's id.
    """

    steps: dict[str, Step] = field(default_factory=dict)
    uses: dict[str, list[Use]] = field(default_factory=dict)

    def add(self, step: Step, use: Use) -> str:
        """Add a step, unless it is there, and what needs it.

        Returns:
            The step's id.
        """
        self.steps.setdefault(step.id, step)
        users = self.uses.setdefault(step.id, [])
        if use not in users:
            users.append(use)
        return step.id

    def remaining(self, done: Callable[[str], bool]) -> list[Step]:
        """The steps that still have to be carried out, in order.

        These are the unfinished steps that nothing else needs, and their unfinished inputs. The
        inputs of a finished step need not exist any more, and are not computed again.

        Args:
            done: Whether the step of an id is finished.
        """
        inputs = set[str]()
        for step in self.steps.values():
            inputs.update(step.inputs.values())
        waiting = [step_id for step_id in self.steps if step_id not in inputs]
        wanted = set[str]()
        while waiting:
            step_id = waiting.pop()
            if step_id not in wanted and not done(step_id):
                wanted.add(step_id)
                waiting.extend(self.steps[step_id].inputs.values())
        return [step for step_id, step in self.steps.items() if step_id in wanted]

    def uses_of(self, *kinds: str) -> Iterator[tuple[Use, str]]:
        """What needs the steps of some kinds, each with the step's id."""
        for step_id, step in self.steps.items():
            if step.kind in kinds:
                for use in self.uses[step_id]:
                    yield use, step_id


def make_plan(recipe: Recipe, data: Data, store: Store) -> Plan:
    """The plan of a recipe.

    Args:
        recipe: What to compare.
        data: Everything that the recipe reads. It is put into the store, where steps find it.
        store: Where finished steps are kept.
    """
    planner = _Planner(recipe, data, store)
    for seed in recipe.seeds:
        for variant in recipe.variants:
            planner.add_variant(variant, seed)
    if recipe.ngrams:
        planner.add_ngrams()
    return planner.plan


@dataclass(frozen=True)
class _TrainingData:
    """What a variant learns the task from.

    Attributes:
        spec: The part of a step's `spec` that names the labelled data.
        sources: role among a step's inputs -> language; the role of a single source is `source`,
            of several `source/LANGUAGE`.
    """

    spec: dict[str, Any]
    sources: dict[str, str]


class _Planner:
    """A plan in the making.

    Attributes:
        texts, vectors, train, valid, test: language -> name of its data in the store.
        pooled: Name of the labelled data of all languages together.
        normalized: `test`, normalised to the spelling of a variant's sources, by these sources and
            the kind of normalisation.
    """

    def __init__(self, recipe: Recipe, data: Data, store: Store) -> None:
        self.recipe = recipe
        self.data = data
        self.store = store
        self.plan = Plan()
        self.texts = {name: store.put(texts) for name, texts in data.texts.items()}
        self.vectors = {name: store.put_vector(vector) for name, vector in data.vectors.items()}
        self.train = {name: store.put(examples) for name, examples in data.train.items()}
        self.valid = {name: store.put(examples) for name, examples in data.valid.items()}
        self.test = {name: store.put(examples) for name, examples in data.test.items()}
        self.pooled = store.put(joined([data.train[name] for name in sorted(data.train)]))
        self.normalized: dict[tuple[str, ...], dict[str, str]] = {}

    def add_ngrams(self) -> None:
        """Add the baseline of character n-grams on all test data."""
        for name, test in self.test.items():
            spec = {"train": self.pooled, "test": test}
            cost = len(self.data.test[name])
            step = Step("ngrams", spec, title=f"{NGRAMS}: {name}", cost=cost)
            self.plan.add(step, Use(NGRAMS, 0, name))

    def add_variant(self, variant: str, seed: int) -> None:
        """Add all steps of a variant with a seed."""
        vectors = {
            name: self._add_language(variant, seed, name)
            for name in self.recipe.needed_languages(variant)
        }
        if not self.recipe.needs_task:
            return
        task = self._add_task(variant, seed, vectors)
        test = self.test
        if self.recipe.variants[variant].normalize:
            test = self._normalized_test(variant)
        for name, digest in test.items():
            self._add_score(variant, seed, name, digest, task, vectors)

    def _shared_spec(self, variant: str) -> dict[str, Any]:
        """What the `spec` of all steps of a variant begins with."""
        family = self.recipe.variants[variant].family
        spec = {"base": self.data.base}
        if family != VECTORS:
            spec["family"] = family
        return spec

    def _add_language(self, variant: str, seed: int, name: str) -> str:
        """Add a language vector; returns the id of its step."""
        use = Use(variant, seed, name)
        spec = {**self._shared_spec(variant), "what": "language"}
        if name in self.vectors and self.recipe.variants[variant].family == VECTORS:
            spec["vector"] = self.vectors[name]
            return self.plan.add(Step("given", spec, title=f"{name}, as it was given"), use)
        spec["text"] = self.texts[name]
        return self._add_fit(spec, self.recipe.language_config(variant, seed), {}, use)

    def _add_task(self, variant: str, seed: int, vectors: Mapping[str, str]) -> str:
        """Add a task vector; returns the id of its step."""
        data = self._training_data(variant)
        spec = {
            **self._shared_spec(variant),
            "what": TASK,
            "version": VERSIONS[TASK],
            **data.spec,
        }
        inputs = {}
        if self.recipe.variants[variant].source:
            inputs = {role: vectors[name] for role, name in data.sources.items()}
        settings = self.recipe.task_config(variant, seed)
        return self._add_fit(spec, settings, inputs, Use(variant, seed, TASK))

    def _add_score(
        self,
        variant: str,
        seed: int,
        name: str,
        test: str,
        task: str,
        vectors: Mapping[str, str],
    ) -> None:
        """Add the scores of a variant on a language's test data.

        Args:
            variant: The variant.
            seed: Its seed.
            name: The language.
            test: Name of the test data in the store.
            task: Id of the step that learns the task vector.
            vectors: language -> id of the step that learns its vector.
        """
        settings = self.recipe.variants[variant]
        inputs = {"task": task}
        if settings.target:
            inputs["language"] = vectors[name]
        if settings.keep_source:
            for role, source in self._training_data(variant).sources.items():
                is_target = settings.target and source == name
                if not is_target:
                    inputs[role] = vectors[source]
        spec = {**self._shared_spec(variant), "test": test, "rule": settings.rule}
        title = f"{variant}, seed {seed}: {name}"
        cost = len(self.data.test[name])
        step = Step("score", spec, inputs, self.recipe.base, None, title, cost)
        self.plan.add(step, Use(variant, seed, name))

    def _training_data(self, variant: str) -> _TrainingData:
        """What a variant learns the task from."""
        names = self.recipe.sources_of(variant)
        if len(names) == 1:
            (name,) = names
            spec: dict[str, Any] = {"train": self.train[name], "valid": self.valid[name]}
            return _TrainingData(spec, {"source": name})
        spec = {
            "train": {name: self.train[name] for name in names},
            "valid": {name: self.valid[name] for name in names},
            "temperature": self.recipe.variants[variant].temperature,
            "several": VERSIONS["several"],
        }
        return _TrainingData(spec, {f"source/{name}": name for name in names})

    def _normalized_test(self, variant: str) -> dict[str, str]:
        """language -> name of its test data, normalised to the spelling of a variant's sources.

        The test data of the sources themselves stay as they are.
        """
        kind = str(self.recipe.variants[variant].normalize)
        sources = self.recipe.sources_of(variant)
        key = (kind, *sources)
        if key in self.normalized:
            return self.normalized[key]

        # what shows how the sources are spelt
        labelled: list[str] = []
        plain_text: list[str] = []
        for name in sources:
            labelled += written(self.data.train[name])
            if kind == "words":
                plain_text += self.data.texts[name]

        test = dict(self.test)
        for name, examples in self.data.test.items():
            if name not in sources:
                normalized = normalize(
                    examples,
                    labelled,
                    plain_text,
                    words=kind == "words",
                    task=self.recipe.task.task,
                )
                test[name] = self.store.put(normalized)
        self.normalized[key] = test
        return test

    def _add_fit(
        self, spec: dict[str, Any], settings: FitConfig, inputs: dict[str, str], use: Use
    ) -> str:
        """Add a fit; returns the id of the step whose result is the vector, or the adapter."""
        base = self.recipe.base
        title = f"{use.variant}, seed {use.seed}: {use.name}"
        cost = settings.training.max_steps or 1
        whole_spec = {**spec, "settings": settings.deciding()}
        if "family" in spec:
            adapter = Step("adapter", whole_spec, inputs, base, settings, title, cost)
            return self.plan.add(adapter, use)

        vector = Step("vector", whole_spec, inputs, base, settings, title, cost)
        if isinstance(settings, VectorConfig) and not takes_phase1(settings):
            return self.plan.add(vector, use)

        # phase 1 on all data
        if isinstance(settings, VectorConfig):
            cost = settings.of_phase1().training.max_steps or 1
        delta_spec = {**spec, "settings": settings.deciding_phase1()}
        delta = Step("delta", delta_spec, inputs, base, settings, title, cost)
        deltas = {"delta": self.plan.add(delta, use)}

        # phase 1 on each half of the data, where these decide the ranks
        if isinstance(settings, VectorConfig) and takes_halves(settings):
            for role, half in HALVES.items():
                half_spec = {**delta_spec, "half": half}
                half_title = f"{title}, half {half}"
                half_cost = max(1, cost // 2)
                delta = Step("delta", half_spec, inputs, base, settings, half_title, half_cost)
                deltas[role] = self.plan.add(delta, use)

        return self.plan.add(replace(vector, inputs={**inputs, **deltas}), use)
