"""SpIEL: entries are chosen while they are trained, as in a dense loop that keeps everything."""

from itertools import pairwise

import pytest
import tiny
import torch
from fit_examples import LANGUAGE, TASK, TEXT, TRAIN, VALID, language_model, same
from torch import nn

from deftx.config import LanguageVectorConfig, changed
from deftx.core.denoise import denoise
from deftx.core.parameters import parameter_groups
from deftx.core.reselection import RESELECTIONS
from deftx.core.select import SPLITS
from deftx.errors import DeftxError
from deftx.fit import fit_language, fit_task
from deftx.objectives.masked_lm import MaskedLM
from deftx.training.spiel import ReselectedTuning, reselected_tuning

INPUTS = torch.tensor([[0, 7, 8, 9, 2], [0, 30, 31, 32, 2], [0, 9, 30, 8, 2], [0, 32, 7, 7, 2]])
IS_LABEL = torch.rand(INPUTS.shape, generator=torch.Generator().manual_seed(0)) < 0.6
LABELS = torch.where(IS_LABEL, INPUTS, -100)
SOME_IDS = INPUTS.unique()
ALL_IDS = torch.arange(75)

# The training
STEPS = 14
RATE = 0.02
CLIP = 0.5
BETAS = (0.9, 0.999)  # AdamW's usual ones
EPSILON = 1e-8

# What is replaced, and when
EVERY = 4
WINDOW = 3
SHARE = 0.5
RANK = 3


def settings_of(method, **changes):
    """Settings under which much is replaced in few steps."""
    schedule = {"every": EVERY, "window": WINDOW, "share": SHARE}
    plain = LanguageVectorConfig(method=method, k="10%", rank=RANK)
    return changed(plain, {"reselection": schedule, **changes})


def made():
    """A model whose output embeddings are not its input embeddings, as they are in a fit."""
    torch.manual_seed(0)
    model = tiny.xlmr().eval()
    decoder = model.get_output_embeddings()
    copy = decoder.weight.detach().clone()
    decoder.weight = nn.Parameter(copy, requires_grad=False)
    return model


def batches_of(step, count):
    """The rows of each batch of a step."""
    batches = []
    for number in range(count):
        first = (step + number) % 4
        second = (step + 2 * number + 1) % 4
        batches.append([first, second])
    return batches


def loss_of(model, rows):
    """The loss of a batch."""
    return model(input_ids=INPUTS[rows], labels=LABELS[rows]).loss


class Watch:
    """What a training was like after each step.

    Attributes:
        first: The positions of the entries before the first step.
        parts: The parts of the model that entries may be in.
        positions: The positions of the entries after each step.
        values: Their values after each step.
        moments: Those of the optimiser, at the end.
    """

    def __init__(self):
        self.first = None
        self.parts = None
        self.positions = []
        self.values = []
        self.moments = None


def train(model, settings, ids=SOME_IDS, *, accumulate=1, steps=STEPS):
    """Our training: the vector, and what was seen of it."""
    watch = Watch()
    with reselected_tuning(model, parameter_groups(model), ids, settings, steps) as tuning:
        watch.first = tuning.positions.clone()
        watch.parts = tuning.parts
        optimizer = torch.optim.AdamW([tuning.values], RATE, weight_decay=0.0)
        for step in range(steps):
            tuning.before_step(step)
            for rows in batches_of(step, accumulate):
                loss_of(model, rows).backward()
            norm = nn.utils.clip_grad_norm_([tuning.values], CLIP)
            optimizer.step()
            tuning.after_step(step + 1, optimizer, clipping_of(norm))
            optimizer.zero_grad()
            watch.positions.append(tuning.positions.clone())
            watch.values.append(tuning.values.detach().clone())
        watch.moments = optimizer.state[tuning.values]
        vector = tuning.vector()
    return vector, watch


def clipping_of(norm):
    """What gradients of a norm are multiplied by."""
    return (CLIP / (norm + 1e-6)).clamp(max=1.0)


def largest(strengths, count, among):
    """The `count` of the numbers `among` with the largest strengths, the first ones on ties."""
    order = strengths[among].argsort(stable=True, descending=True)
    return among[order[:count]]


def without(numbers, others):
    """Those of the numbers that are not among the others."""
    return numbers[~torch.isin(numbers, others)]


def is_matrix(shape):
    """Whether a tensor of this shape has more than one row and more than one column."""
    return len(shape) == 2 and min(shape) > 1


class Dense:
    """The reference: dense weights, gradients and moments of all parts, laid end to end."""

    def __init__(self, model, settings, parts, first):
        self.model = model
        self.settings = settings

        # The parts, and where each begins and ends
        trainable = parameter_groups(model).trainable
        self.names = [part.name for part in parts]
        self.weights = [trainable[name] for name in self.names]
        self.rows = [None if part.rows is None else part.rows.ids for part in parts]
        self.sizes = [part.target.numel() for part in parts]
        self.shapes = [part.target.shape for part in parts]
        bounds = torch.tensor([0, *self.sizes]).cumsum(0)
        self.spans = list(pairwise(bounds.tolist()))

        # The weights, Adam's moments, and which entries are trained
        self.start = self.flat(self.weights)
        self.theta = self.start.clone()
        self.mean = torch.zeros_like(self.theta)
        self.square = torch.zeros_like(self.theta)
        self.is_trained = torch.zeros(len(self.theta), dtype=torch.bool)
        self.is_trained[first] = True

        # The entries that compete with each other; SM3 has matrices alone
        groups = {}
        group_of = SPLITS[settings.split]
        for name, shape, span in zip(self.names, self.shapes, self.spans, strict=True):
            if is_matrix(shape) or settings.method != "spiel-ma":
                group = groups.setdefault(group_of(name), [])
                group.append(torch.arange(*span))
        self.groups = [torch.cat(group) for group in groups.values()]

        # SM3's maxima of rows and of columns
        self.maxima = []
        for shape in self.shapes:
            maxima = None
            if is_matrix(shape):
                maxima = [torch.zeros(size) for size in shape]
            self.maxima.append(maxima)

    def flat(self, tensors):
        """Tensors of all parts, end to end."""
        parts = []
        for tensor, rows in zip(tensors, self.rows, strict=True):
            part = tensor if rows is None else tensor[rows]
            parts.append(part.detach().reshape(-1))
        return torch.cat(parts).clone()

    def by_name(self, flat):
        """The inverse of `flat`."""
        tensors = {}
        parts = flat.split(self.sizes)
        for name, part, shape in zip(self.names, parts, self.shapes, strict=True):
            tensors[name] = part.view(shape)
        return tensors

    def denoised(self, flat):
        """What decides: the numbers themselves, or with spiel-deftx denoised ones."""
        if self.settings.method != "spiel-deftx":
            return flat
        tensors = denoise(self.by_name(flat), RANK, self.settings.keep)
        return torch.cat([tensor.reshape(-1) for tensor in tensors.values()])

    def gradient(self, rows):
        """The dense gradient of a batch."""
        self.model.zero_grad()
        loss_of(self.model, rows).backward()
        return self.flat([weight.grad for weight in self.weights])

    def put(self):
        """Write the values into the model's weights."""
        parts = self.by_name(self.theta).values()
        with torch.no_grad():
            for weight, rows, part in zip(self.weights, self.rows, parts, strict=True):
                if rows is None:
                    weight.copy_(part)
                else:
                    weight[rows] = part

    def run(self, accumulate, steps):
        """Train: the positions of the entries after each step, and their values."""
        seen = []
        for step in range(steps):
            gradients = [self.gradient(rows) for rows in batches_of(step, accumulate)]
            whole = sum(gradients)
            if step % EVERY == 0:
                self.find_candidates(gradients[0])

            own = whole * self.is_trained
            clipping = clipping_of(own.norm())
            if step % EVERY < WINDOW:
                clipped = whole * clipping
                self.sum += clipped
                self.sum_of_squares += clipped.square()

            own_clipped = own * clipping
            self.adam(own_clipped, step + 1)
            self.update_maxima(own_clipped)
            self.reselect(step + 1, steps)
            self.put()
            positions = self.is_trained.nonzero().view(-1)
            seen.append((positions, self.theta[positions]))
        return seen

    def find_candidates(self, gradient):
        """As many entries of each group as it trains: those with the largest gradients."""
        self.found = self.denoised(gradient).abs()
        self.candidates = []
        for group in self.groups:
            k = int(self.is_trained[group].sum())
            self.candidates.append(largest(self.found, k, group))
        self.sum = torch.zeros_like(gradient)
        self.sum_of_squares = torch.zeros_like(gradient)

    def adam(self, gradient, t):
        """A step of Adam on the trained entries; `t` counts from 1."""
        beta1, beta2 = BETAS
        trained = self.is_trained
        change_of_mean = (1 - beta1) * (gradient - self.mean)
        change_of_square = (1 - beta2) * (gradient.square() - self.square)
        self.mean[trained] += change_of_mean[trained]
        self.square[trained] += change_of_square[trained]
        mean = self.mean / (1 - beta1**t)
        square = self.square / (1 - beta2**t)
        change = RATE * mean / (square.sqrt() + EPSILON)
        self.theta[trained] -= change[trained]

    def update_maxima(self, gradient):
        """SM3: maxima of rows and columns, and what they say of each entry."""
        self.estimates = torch.zeros_like(gradient)
        self.least = torch.zeros_like(gradient)
        for number, (begin, end) in enumerate(self.spans):
            if self.maxima[number] is None:
                continue
            rows, columns = self.maxima[number]
            bound = torch.minimum(rows.unsqueeze(1), columns)
            trained = self.is_trained[begin:end].view(bound.shape)
            squares = gradient[begin:end].view(bound.shape).square()
            sums = (bound + squares) * trained

            rows = torch.maximum(rows, sums.amax(dim=1))
            columns = torch.maximum(columns, sums.amax(dim=0))
            self.maxima[number] = [rows, columns]
            estimates = torch.outer(rows.sqrt(), columns.sqrt())
            least = torch.minimum(rows.unsqueeze(1), columns)
            self.estimates[begin:end] = estimates.view(-1)
            self.least[begin:end] = least.view(-1)

    def reselect(self, done, steps):
        """Replace entries, where so many steps done are the end of a window."""
        if done < WINDOW or (done - WINDOW) % EVERY or done == steps:
            return
        share = SHARE * (1 - done / steps)
        if done == WINDOW:
            share = 1.0
        changes = (self.theta - self.start) * self.is_trained
        movement = self.denoised(changes).abs()
        for number, group in enumerate(self.groups):
            # Those that moved furthest are kept
            trained = group[self.is_trained[group]]
            count = int(share * len(trained))
            kept = largest(movement, len(trained) - count, trained)

            # What may grow, by which scores, and the moments it starts with
            if self.settings.method == "spiel-ma":
                scores = self.estimates
                eligible = group[~self.is_trained[group]]
                mean = torch.zeros_like(scores)
                square = self.least / done
            else:
                scores = self.sum.abs()
                eligible = self.candidates[number].sort().values
                eligible = eligible[self.found[eligible] > 0]
                mean = self.sum / WINDOW
                square = self.sum_of_squares / WINDOW
            eligible = without(eligible, kept)
            eligible = eligible[scores[eligible] > 0]
            grown = largest(scores, count, eligible)

            # As many leave as are new, those that moved least
            new = without(grown, trained)
            leaving = without(trained, torch.cat([kept, grown]))
            staying = largest(movement, len(leaving) - len(new), leaving)
            leaving = without(leaving, staying)
            assert len(leaving) == len(new)
            self.is_trained[leaving] = False
            self.theta[leaving] = self.start[leaving]
            self.is_trained[new] = True
            self.mean[new] = mean[new] * (1 - BETAS[0] ** done)
            self.square[new] = square[new] * (1 - BETAS[1] ** done)


@pytest.mark.parametrize("ids", [SOME_IDS, ALL_IDS], ids=["some rows", "all rows"])
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("method", RESELECTIONS)
def test_entries_are_chosen_and_trained_as_in_a_dense_loop(method, split, ids):
    settings = settings_of(method, split=split)
    _, watch = train(made(), settings, ids, accumulate=2)
    reference = Dense(made(), settings, watch.parts, watch.first)
    expected = reference.run(accumulate=2, steps=STEPS)
    steps_of_moves = []
    before = watch.first
    for step, (positions, values) in enumerate(expected):
        assert torch.equal(watch.positions[step], positions), step
        # Within a 400th of a step: small gradients are divided by a root near epsilon
        torch.testing.assert_close(watch.values[step], values, rtol=1e-4, atol=RATE / 400)
        if not torch.equal(positions, before):
            steps_of_moves.append(step + 1)
        before = positions
    assert steps_of_moves == [3, 7, 11]

    last_positions, _ = expected[-1]
    square = reference.square[last_positions]
    torch.testing.assert_close(watch.moments["exp_avg_sq"], square, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("method", RESELECTIONS)
@pytest.mark.parametrize("k", [1, 37, "10%", "60%", "100%"])
def test_exactly_k_entries_move_and_nothing_else(method, k):
    model = made()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    vector, watch = train(model, settings_of(method, k=k), steps=9)

    # k entries in the vector, and as many trained at all steps
    groups = parameter_groups(model)
    expected = k
    if isinstance(k, str):
        share = float(k.removesuffix("%")) / 100
        expected = round(share * groups.trainable_size)
    assert vector.k == expected
    numbers_trained = {len(positions) for positions in watch.positions}
    assert len(numbers_trained) == 1

    # The vector is all that has changed
    trainable_names = {id(weight): name for name, weight in groups.trainable.items()}
    for name, weight in model.named_parameters():
        moved = weight.detach() - before[name]
        if id(weight) in trainable_names:
            entries = vector[trainable_names[id(weight)]]
            torch.testing.assert_close(moved, entries.to_dense())
        else:
            assert not moved.any()


def copies_of_trainable(model):
    """Copies of the weights that a vector may change, by name."""
    copies = {}
    for name, weight in parameter_groups(model).trainable.items():
        copies[name] = weight.detach().clone()
    return copies


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropped_entries_are_what_they_were_to_the_last_bit(dtype):
    """In half precision the trained values are kept in float32 all the same."""
    model = made().to(dtype)
    before = copies_of_trainable(model)
    vector, watch = train(model, settings_of("spiel-ag"))
    assert not torch.equal(watch.first, watch.positions[-1])
    assert watch.values[-1].dtype == torch.float32
    assert watch.moments["exp_avg"].dtype == torch.float32
    for name, after in copies_of_trainable(model).items():
        is_free = torch.ones(after.numel(), dtype=torch.bool)
        is_free[vector[name].indices] = False
        assert torch.equal(after.view(-1)[is_free], before[name].view(-1)[is_free])


def test_rows_of_pieces_that_the_data_lack_get_no_entries():
    vector, _ = train(made(), settings_of("spiel-ag", k="30%"))
    embeddings = vector["embeddings.word_embeddings.weight"]
    _, width = embeddings.shape
    rows = embeddings.indices // width
    assert set(rows.tolist()) <= set(SOME_IDS.tolist())


def test_a_period_longer_than_the_training_means_one_choice():
    settings = settings_of("spiel-ag", reselection={"every": 1000, "window": 2})
    _, watch = train(made(), settings)
    before, chosen, *later = watch.positions
    assert torch.equal(before, watch.first)
    assert not torch.equal(chosen, watch.first)
    assert len(later) == STEPS - 2
    for positions in later:
        assert torch.equal(positions, chosen)


def test_the_share_that_is_replaced_falls_and_nothing_is_replaced_at_the_end():
    settings = settings_of("spiel-ma", reselection={"every": 2, "window": 2, "share": 1.0})
    _, watch = train(made(), settings, steps=12)
    replaced = []
    at_reselections = watch.positions[1::2]
    for before, after in pairwise(at_reselections):
        replaced.append(len(without(after, before)))
    assert replaced == sorted(replaced, reverse=True)
    assert replaced[0] > replaced[-2] > 0
    assert replaced[-1] == 0


def test_there_is_one_dense_gradient_at_a_time_and_moments_of_k_values(monkeypatch):
    gather = ReselectedTuning.gather
    counts = []

    def counted(self, target, number):
        with_gradient = [part for part in self.parts if part.target.grad is not None]
        counts.append(len(with_gradient))
        gather(self, target, number)

    monkeypatch.setattr(ReselectedTuning, "gather", counted)
    vector, watch = train(made(), settings_of("spiel-ag"))
    assert set(counts) == {1}
    assert watch.moments["exp_avg"].shape == (vector.k,)
    assert watch.moments["exp_avg_sq"].shape == (vector.k,)


def test_an_earlier_state_is_put_back_with_its_entries():
    model = made()
    settings = settings_of("spiel-ag")
    groups = parameter_groups(model)
    with reselected_tuning(model, groups, SOME_IDS, settings, STEPS) as tuning:
        optimizer = torch.optim.AdamW([tuning.values], RATE, weight_decay=0.0)
        for step in range(STEPS):
            tuning.before_step(step)
            loss_of(model, [0, 1]).backward()
            optimizer.step()
            tuning.after_step(step + 1, optimizer, torch.tensor(1.0))
            optimizer.zero_grad()
            if step == 4:
                values = tuning.values.detach().clone()
                positions = tuning.positions.clone()
                vector = tuning.vector()
                head = {name: weight.detach().clone() for name, weight in groups.head.items()}
                loss = loss_of(model, [0, 1])
        assert not torch.equal(tuning.positions, positions)

        with torch.no_grad():
            tuning.values.copy_(values)
            tuning.positions.copy_(positions)
        tuning.restore()
        assert same(tuning.vector(), vector)
        assert torch.equal(loss_of(model, [0, 1]), loss)
        for name, weight in groups.head.items():
            assert torch.equal(weight, head[name])


FIT = {"method": "spiel-ag", "reselection": {"every": 4, "window": 2}}
LONGER = {"training": {"max_steps": 12, "evaluate_every": 5, "epochs": 12}}


def has_five_percent(vector):
    """Whether a vector has 5% of the entries that it may have, as the examples' settings say."""
    size = sum(tensor.numel() for tensor in vector.to_dense().values())
    return vector.k == round(0.05 * size)


@pytest.mark.parametrize("method", RESELECTIONS)
def test_languages_and_tasks_are_learnt_in_one_training(bases, method):
    language = changed(changed(LANGUAGE, FIT | {"method": method}), LONGER)
    vector = fit_language(bases(), TEXT, language)
    assert list(vector.provenance.log) == ["phase2"]
    assert vector.provenance.reselection == {"every": 4, "window": 2, "share": 0.2}

    task = changed(changed(TASK, FIT | {"method": method}), LONGER)
    task_vector = fit_task(bases(), TRAIN, VALID, task, source=vector)
    assert has_five_percent(task_vector)
    assert task_vector.head is not None


def test_the_best_evaluated_step_is_left_with_its_entries(bases, monkeypatch):
    losses = iter([5.0, 4.0, 1.0, 3.0, 2.0])  # before, and after steps 3, 6, 9 and 12
    seen = []

    def validate(self, model, batch_size):
        seen.append(copies_of_trainable(model))
        return {"loss": next(losses)}

    monkeypatch.setattr(MaskedLM, "validate", validate)
    often = {"max_steps": 12, "evaluate_every": 3, "epochs": 12}
    settings = changed(LANGUAGE, FIT | {"k": "30%", "training": often})
    vector = fit_language(bases(), TEXT, settings)
    assert vector.provenance.log["phase2"].best_step == 6

    # The vector is what the weights were at the third evaluation
    best = seen[2]
    start, *_ = language_model(bases())
    for name, weight in copies_of_trainable(start).items():
        if name != "embeddings.word_embeddings.weight":  # written at the end
            entries = vector[name].to_dense()
            torch.testing.assert_close(entries, best[name] - weight)
            assert torch.equal(entries != 0, best[name] != weight)


@pytest.mark.parametrize("shape", ["deberta", "llama", "qwen", "mt5", "bart"])
def test_kinds_of_bases_learn_languages_so(bases, shape):
    """Embeddings of their own and tied ones, encoder-decoders; each layer having its part."""
    settings = changed(changed(LANGUAGE, FIT | {"split": "layer"}), LONGER)
    vector = fit_language(bases(shape), TEXT, settings)
    assert has_five_percent(vector)
    assert any(tensor.any() for tensor in vector.to_dense().values())


@pytest.mark.parametrize("method", RESELECTIONS)
def test_a_task_without_entries_learns_its_head(bases, method):
    task = changed(changed(TASK, FIT | {"method": method, "k": 0}), LONGER)
    vector = fit_task(bases(), TRAIN, VALID, task)
    assert vector.k == 0
    assert vector.head is not None


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"phase2": False}, "method spiel-ag has no phase 1, so that phase2 = false"),
        ({"rank": "split-half"}, "rank split-half needs phase 1, which method spiel-ag has not"),
        ({"training": {"average": 2}}, "method spiel-ag with training.average = 2"),
        (
            {"reselection": {"every": 9, "window": 4}},
            "reselection.window = 4 steps, but the training has 4: set it below",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(bases, wrong, message):
    settings = changed(changed(LANGUAGE, FIT), wrong)
    with pytest.raises(DeftxError) as caught:
        fit_language(bases(), TEXT, settings)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_window_longer_than_the_period_is_refused():
    message = r"reselection\.window = 7: is more than reselection\.every"
    with pytest.raises(DeftxError, match=message):
        changed(LANGUAGE, {"reselection": {"every": 3, "window": 7}})


def test_several_processes_are_refused(bases, monkeypatch):
    monkeypatch.setattr("deftx.training.distributed._world", [2, 0])
    with pytest.raises(DeftxError, match="method spiel-ag is for one process"):
        fit_language(bases(), TEXT, changed(changed(LANGUAGE, FIT), LONGER))


def test_other_methods_do_not_record_when_entries_are_replaced():
    assert "reselection" not in LanguageVectorConfig().deciding()
    assert "reselection" in LanguageVectorConfig(method="spiel-ma").deciding()
