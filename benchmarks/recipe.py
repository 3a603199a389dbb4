"""The whole method beside the plain way: `python benchmarks/recipe.py`.

On the demo's artificial languages, and on those of `recipes/nusax-nano.yaml` where its base and
data are at hand, both with DeFT-X alone, one seed and fewer steps.

A vector for the source language, one for the task and one for each target, composed and scored. The
plain way is Algorithm 1 with the operations that come first to mind: logits of all positions, the
penalty through autograd, dense masked gradients and AdamW over all weights, an SVD of each matrix,
a list of all magnitudes, dense sums on a base that is loaded for each language. Text is read,
packed and masked by the same functions, but in another random order: so scores differ as those of
two seeds do. One thread: the matrices are too small to be shared out.
"""

import tempfile
from collections.abc import Callable
from copy import deepcopy
from functools import cache, partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import yaml
from core import list_select, plain_denoise
from measure import DEVICE, Measured, alternate, options_of, peak_in_subprocess, print_peak, report
from torch import Tensor, nn

from deftx.config import VectorConfig
from deftx.core.parameters import parameter_groups
from deftx.data.reading import read_text
from deftx.experiments.demo import run as demo
from deftx.experiments.recipe import Recipe, load_recipe
from deftx.experiments.run import run_recipe
from deftx.models.heads import load_task_model
from deftx.models.loading import load_language_model
from deftx.models.tokenizers import load_tokenizer
from deftx.objectives.masked_lm import masked_lm
from deftx.tasks.base import evaluate, supervised
from deftx.tasks.classification import CLASSIFICATION
from deftx.tasks.registry import read_examples

SHAPES = {"small": 10, "base": 60}  # steps of each phase
NUSAX = Path(__file__).parents[1] / "recipes" / "nusax-nano.yaml"
Delta = dict[str, Tensor]


def demo_recipe(folder: Path, steps: int) -> Recipe:
    """The demo's data in `folder`, and its recipe for DeFT-X alone, with so many steps."""
    demo.write_data(folder / "data", 0)
    content: dict[str, Any] = deepcopy(demo.recipe(0))
    for part in ("language", "task"):
        content[part]["training"] |= {"max_steps": steps, "evaluate_every": steps // 2}
    content |= {"base": str(demo.BASE), "variants": {demo.DEFT_X: demo.VARIANTS[demo.DEFT_X]}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(content))
    return load_recipe(folder / "recipe.yaml")


def nusax_recipe(folder: Path, steps: int) -> Recipe:
    """`recipes/nusax-nano.yaml` for DeFT-X alone, with so many steps."""
    training = {"max_steps": steps, "evaluate_every": steps // 2}
    recipe = load_recipe(NUSAX, {part: {"training": training} for part in ("language", "task")})
    name = "DeFT-X 90/90"
    return recipe.model_copy(
        update={"seeds": (0,), "ngrams": False, "variants": {name: recipe.variants[name]}}
    )


RECIPES = {"the demo's recipe": demo_recipe, "the recipe nusax-nano": nusax_recipe}


def ours(recipe: Recipe) -> float:
    """The average macro-F1 over the targets, as `deftx run` gives it."""
    with tempfile.TemporaryDirectory() as out:
        return mean(score.scores["macro_f1"] for score in run_recipe(recipe, Path(out, "run")))


def plain(recipe: Recipe) -> float:
    """The same, from first principles."""
    tokenizer, language, task = load_tokenizer(recipe.base), recipe.language, recipe.task
    torch.manual_seed(0)

    @cache
    def vector_of(name: str) -> Delta:
        length = language.training.length
        objective = masked_lm(
            read_text(*recipe.languages[name]), tokenizer, language.training, length, 0
        )
        return plain_fit(lambda: load_language_model(recipe.base), objective, language)[0]

    train, valid = read_examples(recipe.train), read_examples(recipe.valid)
    labels = CLASSIFICATION.label_names(train)
    length, metric = task.training.length, str(task.training.metric)
    objective = supervised(CLASSIFICATION, train, valid, labels, tokenizer, length, metric)
    source = vector_of(recipe.source)
    learnt, top = plain_fit(lambda: composed(recipe, labels, [source]), objective, task)
    found = []
    for name, file in recipe.test.items():
        model = composed(recipe, labels, [vector_of(name), learnt]).to(DEVICE)
        for place, weight in parameter_groups(model).head.items():
            weight.data.copy_(top[place])
        found.append(
            evaluate(CLASSIFICATION, model, tokenizer, read_examples(file), length)["macro_f1"]
        )
    return mean(found)


def composed(recipe: Recipe, labels: tuple[str, ...], deltas: list[Delta]) -> Any:
    """A classifier on the base, with dense differences added."""
    model = load_task_model(recipe.base, labels, 0)
    for delta in deltas:
        for name, weight in parameter_groups(model).trainable.items():
            weight.data += delta[name]
    return model


def plain_fit(make: Callable[[], Any], objective: Any, fit: VectorConfig) -> tuple[Delta, Delta]:
    """Algorithm 1: the difference that phase 2 makes, dense, and the head that it leaves."""
    model = make().to(DEVICE)
    start = {
        name: weight.detach().clone() for name, weight in parameter_groups(model).trainable.items()
    }
    plain_train(model, objective, fit, start, {})
    delta = {
        name: weight.detach() - start[name]
        for name, weight in parameter_groups(model).trainable.items()
    }
    denoised, _ = plain_denoise(delta, str(fit.rank))
    masks = {name: torch.zeros_like(values) for name, values in delta.items()}
    for name, places in list_select(dict(denoised), fit.k).items():
        masks[name].view(-1)[places] = 1
    model = make().to(DEVICE)
    plain_train(model, objective, fit, start, masks)
    difference = {
        name: weight.detach() - start[name]
        for name, weight in parameter_groups(model).trainable.items()
    }
    top = {name: weight.detach().cpu() for name, weight in parameter_groups(model).head.items()}
    return {name: values.cpu() for name, values in difference.items()}, top


def plain_train(model: Any, objective: Any, fit: VectorConfig, start: Delta, masks: Delta) -> None:
    """Train, and end at the evaluated step with the best score."""
    settings, body = fit.training, parameter_groups(model).trainable
    for name, weight in parameter_groups(model).backbone.items():
        weight.requires_grad_(name in body)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    steps = settings.max_steps or 0
    optimiser = torch.optim.AdamW(trained, settings.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / steps)
    pull = settings.l1 / sum(weight.numel() for weight in parameter_groups(model).backbone.values())
    best, state = -float("inf"), {}
    for step in range(1, steps + 1):
        chosen = torch.randint(len(objective.train), (settings.batch_size,)).tolist()
        model.train()
        batch = objective.collate([objective.train[i] for i in chosen])
        loss = model(**{name: values.to(DEVICE) for name, values in batch.items()}).loss
        if pull:
            loss = loss + pull * sum(
                (weight - start[name]).abs().sum() for name, weight in body.items()
            )
        loss.backward()
        for name, mask in masks.items():
            body[name].grad *= mask
        nn.utils.clip_grad_norm_(trained, settings.clip)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        if step % settings.evaluate_every == 0 and (reached := score(model, objective)) > best:
            best, state = (
                reached,
                {name: value.clone() for name, value in model.state_dict().items()},
            )
    model.load_state_dict(state)


@torch.no_grad()
def score(model: Any, objective: Any) -> float:
    """The held-out score, larger being better: the task's metric, or the loss of the masked tokens
    below zero."""
    model.eval()
    if objective.metric != "loss":
        return float(objective.validate(model, 32)[objective.metric])
    inputs, labels = (part.to(DEVICE) for part in objective.held_out)
    return -float(model(input_ids=inputs, labels=labels).loss)


WAYS = {"ours": ours, "plain": plain}


def one_thread(way: Callable[[Recipe], float], recipe: Recipe) -> float:
    """What a way gives, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return way(recipe)
    finally:
        torch.set_num_threads(threads)


def measured(name: str, shape: str, repeat: int) -> Measured:
    """A recipe's row."""
    if name == "the recipe nusax-nano" and not (NUSAX.parents[2] / "shared").is_dir():
        return Measured(name, None, note="its base and data are not here")
    with tempfile.TemporaryDirectory() as folder:
        recipe = RECIPES[name](Path(folder), SHAPES[shape])
        times, found = alternate(
            [partial(one_thread, way, recipe) for way in WAYS.values()], repeat
        )
    peaks = [peak_in_subprocess("--shape", shape, "--peak", name, way) for way in WAYS]
    note = f"{SHAPES[shape]} steps a phase; "
    note += "macro-F1 (%): ours {:.1f}, plain {:.1f}".format(*(100 * value for value in found))
    return Measured(name, *times, gigabytes=(peaks[0], peaks[1]), note=note)


def main() -> None:
    """Parse, compare, report."""
    options = options_of(__doc__, SHAPES, 1).parse_args()
    if options.peak:
        name, way = options.peak
        with tempfile.TemporaryDirectory() as folder:
            recipe = RECIPES[name](Path(folder), SHAPES[options.shape])
            return print_peak(partial(one_thread, WAYS[way], recipe))
    names = [name for name in RECIPES if options.only in (None, name)]
    report((measured(name, options.shape, options.repeat) for name in names), options)


if __name__ == "__main__":
    main()
