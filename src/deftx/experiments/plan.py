"""What a recipe comes to: steps, each named by all that determines its result, those that variants
share once.

    delta    phase 1 of a fit: θ1 − θ0, shared by all methods, ranks and k; also that of a half of
             the data, shared by all that take their ranks from two halves
    vector   the rest of a fit: denoise, select, phase 2
    given    a finished vector that the recipe takes as it is
    adapter  a fit of a baseline that learns something else than vectors
    score    a composed model on a language's test data
    ngrams   the baseline of character n-grams, on a language's test data

A language's fit is delta -> vector (several deltas, where halves tell its ranks); a task's fit too,
above the vectors of its sources; a score is above the task's vector and the language's.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from deftx.config import FitConfig, VectorConfig, parse
from deftx.data.examples import joined, written
from deftx.experiments.data import Data
from deftx.experiments.recipe import FAMILIES, TASK, VECTORS, Recipe
from deftx.experiments.store import Store
from deftx.tasks.normalization import respelt
from deftx.training.halves import HALVES
from deftx.training.preparation import takes_halves

# Versions of the code of each kind of step, of what all fits of a task share, and those of several
# sources. Raise one when a change alters what the step gives: results of the old code are not taken
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

    kind    of VERSIONS
    about   JSON-like data: with the inputs, all that determines the result
    inputs  role -> id of the step whose result is needed
    base    where the base is: `about` names it by its content
    settings  of a fit; `about` has those that decide something
    title   for people
    cost    what its time goes with, among steps of its kind: optimiser steps, or examples
    """

    kind: str
    about: Mapping[str, Any]
    inputs: Mapping[str, str] = field(default_factory=dict)
    base: str = ""
    settings: FitConfig | None = None
    title: str = ""
    cost: int = 1

    @cached_property
    def id(self) -> str:
        """A name of the result: other settings, data, base or code, another name."""
        parts = [self.kind, VERSIONS[self.kind], dict(self.about), dict(self.inputs)]
        return f"{self.kind}-{hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]}"

    def to_json(self) -> str:
        """The step as text, for another process."""
        return json.dumps(
            {**asdict(self), "settings": self.settings and self.settings.model_dump(mode="json")}
        )

    @classmethod
    def from_json(cls, text: str) -> "Step":
        """The step that `to_json` wrote."""
        data = json.loads(text)
        kinds = FAMILIES[data["about"].get("family", VECTORS)]
        kind = kinds[data["about"].get("what") == TASK]
        return cls(**{**data, "settings": data["settings"] and parse(kind, data["settings"])})


@dataclass(frozen=True)
class Use:
    """Which variant needs a step, for which seed, and for which language or "task"."""

    variant: str
    seed: int
    name: str


@dataclass(frozen=True)
class Plan:
    """The steps of a recipe by id, inputs before what needs them, and what uses each of them."""

    steps: dict[str, Step] = field(default_factory=dict)
    uses: dict[str, list[Use]] = field(default_factory=dict)

    def add(self, step: Step, use: Use) -> str:
        """The id of a step that is wanted for a use, among the others from now on."""
        self.steps.setdefault(step.id, step)
        users = self.uses.setdefault(step.id, [])
        if use not in users:
            users.append(use)
        return step.id

    def left(self, done: Callable[[str], bool]) -> list[Step]:
        """The steps that are still to be carried out, in order: those that nothing else needs, and
        what is missing for them. What was needed only for steps that are done is not among them,
        though it may be gone."""
        ends = self.steps.keys() - {
            needed for step in self.steps.values() for needed in step.inputs.values()
        }
        wanted = set[str]()
        rest = [end for end in ends if not done(end)]
        while rest:
            wanted.add(step_id := rest.pop())
            rest += [
                i for i in self.steps[step_id].inputs.values() if i not in wanted and not done(i)
            ]
        return [step for step_id, step in self.steps.items() if step_id in wanted]

    def of(self, *kinds: str) -> Iterator[tuple[Use, str]]:
        """The uses of the steps of some kinds, and the steps' ids."""
        for step_id, step in self.steps.items():
            if step.kind in kinds:
                yield from ((use, step_id) for use in self.uses[step_id])


def make_plan(recipe: Recipe, data: Data, store: Store) -> Plan:
    """The plan of a recipe; its data are put into the store, where the steps find them."""
    planner, plan = _Planner(recipe, data, store), Plan()
    for seed in recipe.seeds:
        for variant in recipe.variants:
            planner.add_variant(plan, variant, seed)
    if recipe.ngrams:
        for name in data.test:
            about, cost = (
                {"train": planner.pooled, "test": planner.test[name]},
                len(data.test[name]),
            )
            plan.add(
                Step("ngrams", about, title=f"{NGRAMS}: {name}", cost=cost), Use(NGRAMS, 0, name)
            )
    return plan


class _Planner:
    """A recipe's data by name of content, and the steps that its variants need."""

    def __init__(self, recipe: Recipe, data: Data, store: Store) -> None:
        self.recipe, self.data, self.store = recipe, data, store
        self.texts = {name: store.put(texts) for name, texts in data.texts.items()}
        self.vectors = {name: store.put_vector(vector) for name, vector in data.vectors.items()}
        self.train = {name: store.put(examples) for name, examples in data.train.items()}
        self.valid = {name: store.put(examples) for name, examples in data.valid.items()}
        self.pooled = store.put(joined([data.train[name] for name in sorted(data.train)]))
        self.test = {name: store.put(examples) for name, examples in data.test.items()}
        self.spelt: dict[
            tuple[str, ...], dict[str, str]
        ] = {}  # by sources, and how: `test` in their spelling

    def add_variant(self, plan: Plan, variant: str, seed: int) -> None:
        """All steps of a variant with a seed."""
        recipe, chosen = self.recipe, self.recipe.variants[variant]
        about: dict[str, Any]
        shared = {
            "base": self.data.base,
            **({} if chosen.family == VECTORS else {"family": chosen.family}),
        }
        vectors = {}
        for name in recipe.needed_languages(variant):
            use = Use(variant, seed, name)
            if name in self.vectors and chosen.family == VECTORS:
                about = {**shared, "what": "language", "vector": self.vectors[name]}
                vectors[name] = plan.add(
                    Step("given", about, title=f"{name}, as it was given"), use
                )
                continue
            about = {**shared, "what": "language", "text": self.texts[name]}
            vectors[name] = self._fit(plan, about, recipe.language_config(variant, seed), {}, use)
        if not recipe.needs_task:
            return
        labelled, roles = self._labelled(variant)
        above = {role: vectors[name] for role, name in roles.items()} if chosen.source else {}
        about = {**shared, "what": TASK, "version": VERSIONS[TASK], **labelled}
        task = self._fit(
            plan, about, recipe.task_config(variant, seed), above, Use(variant, seed, TASK)
        )
        for name, test in (self._respelt(variant) if chosen.respell else self.test).items():
            own = {"language": name} if chosen.target else {}
            kept = {
                role: other
                for role, other in roles.items()
                if chosen.keep_source and other not in own.values()
            }
            inputs = {"task": task} | {
                role: vectors[language] for role, language in (own | kept).items()
            }
            about = {**shared, "test": test, "rule": chosen.rule}
            title, cost = f"{variant}, seed {seed}: {name}", len(self.data.test[name])
            plan.add(
                Step("score", about, inputs, recipe.base, None, title, cost),
                Use(variant, seed, name),
            )

    def _labelled(self, variant: str) -> tuple[dict[str, Any], dict[str, str]]:
        """The labelled data of a variant, and the languages of its source vectors by their role as
        inputs: `source`, of several `source/LANGUAGE`."""
        names = self.recipe.sources_of(variant)
        if len(names) == 1:
            return {"train": self.train[names[0]], "valid": self.valid[names[0]]}, {
                "source": names[0]
            }
        by_language = {
            "train": {n: self.train[n] for n in names},
            "valid": {n: self.valid[n] for n in names},
        }
        temperature = self.recipe.variants[variant].temperature
        about = {**by_language, "temperature": temperature, "several": VERSIONS["several"]}
        return about, {f"source/{name}": name for name in names}

    def _respelt(self, variant: str) -> dict[str, str]:
        """The names of the test data in the spelling of a variant's sources; of a source, as they
        are."""
        sources, chosen = self.recipe.sources_of(variant), self.recipe.variants[variant]
        if (key := (str(chosen.respell), *sources)) not in self.spelt:
            like = [line for name in sources for line in written(self.data.train[name])]
            words = chosen.respell == "words"
            text = [line for name in sources for line in self.data.texts[name]] if words else []
            others = {n: examples for n, examples in self.data.test.items() if n not in sources}
            spelt = {
                n: respelt(e, like, text, words=words, task=self.recipe.task.task)
                for n, e in others.items()
            }
            self.spelt[key] = {
                **self.test,
                **{name: self.store.put(examples) for name, examples in spelt.items()},
            }
        return self.spelt[key]

    def _fit(
        self,
        plan: Plan,
        about: dict[str, Any],
        settings: FitConfig,
        inputs: dict[str, str],
        use: Use,
    ) -> str:
        """The id of the vector, or the adapter, that a fit ends with."""
        base, title = self.recipe.base, f"{use.variant}, seed {use.seed}: {use.name}"
        deciding, cost = settings.deciding(), settings.training.max_steps or 1
        if "family" in about:
            adapter = Step(
                "adapter", {**about, "settings": deciding}, inputs, base, settings, title, cost
            )
            return plan.add(adapter, use)
        about_delta = {**about, "settings": settings.deciding_phase1()}
        deltas = {
            "delta": plan.add(Step("delta", about_delta, inputs, base, settings, title, cost), use)
        }
        for role, half in (
            HALVES.items() if isinstance(settings, VectorConfig) and takes_halves(settings) else ()
        ):
            named, part = f"{title}, half {half}", {**about_delta, "half": half}
            step = Step("delta", part, inputs, base, settings, named, max(1, cost // 2))
            deltas[role] = plan.add(step, use)
        about, inputs = {**about, "settings": deciding}, {**inputs, **deltas}
        return plan.add(Step("vector", about, inputs, base, settings, title, cost), use)
