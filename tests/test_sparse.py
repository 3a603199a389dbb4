"""Sparse tuning: the selected entries learn as they would in a dense loop, and nothing else
moves."""

import pytest
import tiny
import torch
from torch import nn

from deftx.core.parameters import parameter_groups
from deftx.core.select import TensorMask, select
from deftx.errors import DeftxError
from deftx.training.sparse import sparse_tuning

INPUTS = torch.tensor([[0, 7, 8, 9, 2], [0, 30, 31, 32, 2]])
LABELS = torch.tensor([[-100, 7, -100, 9, -100], [-100, -100, 31, -100, -100]])
LEARNING_RATE = 0.05
OPTIMISERS = {
    "SGD with momentum and weight decay": lambda p: torch.optim.SGD(
        p, 0.5, momentum=0.9, weight_decay=0.5
    ),
    "Adam": lambda p: torch.optim.Adam(p, LEARNING_RATE),
    "AdamW with a large weight decay": lambda p: torch.optim.AdamW(
        p, LEARNING_RATE, weight_decay=0.9
    ),
    "fused AdamW": lambda p: torch.optim.AdamW(p, LEARNING_RATE, weight_decay=0.9, fused=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, LEARNING_RATE),
    "RMSprop with weight decay": lambda p: torch.optim.RMSprop(
        p, LEARNING_RATE, weight_decay=0.5, momentum=0.5
    ),
}


def made(shape="xlmr"):
    torch.manual_seed(0)
    return tiny.SHAPES[shape]().eval()


def chosen(model, k="10%", seed=1):
    """A selection over the tunable parameters, as random differences would give."""
    generator = torch.Generator().manual_seed(seed)
    return select(
        {
            name: torch.randn(w.shape, generator=generator)
            for name, w in parameter_groups(model).trainable.items()
        },
        k,
    )


def loss_of(model, rows=slice(None)):
    return model(input_ids=INPUTS[rows], labels=LABELS[rows]).loss


def weights(model):
    return {
        name: weight.detach().clone() for name, weight in parameter_groups(model).backbone.items()
    }


def selected(tensors, selection):
    """The selected entries of dense tensors, as one flat tensor."""
    return torch.cat(
        [tensors[name].reshape(-1)[places.indices] for name, places in selection.items()]
    )


def outside(selection, name, tensor):
    """The entries of a tensor that are not selected."""
    free = torch.ones(tensor.numel(), dtype=torch.bool)
    if name in selection:
        free[selection[name].indices] = False
    return tensor.reshape(-1)[free]


def tune(model, selection, make_optimiser, steps=4):
    """Plain sparse tuning -> the vector."""
    with sparse_tuning(model, selection) as tuning:
        optimiser = make_optimiser(tuning.parameters())
        for _ in range(steps):
            optimiser.zero_grad()
            loss_of(model).backward()
            optimiser.step()
        return tuning.vector()


def tune_densely(model, selection, make_optimiser, steps=4):
    """The reference: dense gradients masked, and after each step all but the selected entries put
    back."""
    parameters, start = parameter_groups(model).backbone, weights(model)
    masks = {name: torch.zeros(w.shape) for name, w in parameters.items()}
    for name, places in selection.items():
        masks[name].view(-1)[places.indices] = 1
    optimiser = make_optimiser(list(parameters.values()))
    for _ in range(steps):
        model.zero_grad()
        loss_of(model).backward()
        for name, parameter in parameters.items():
            parameter.grad *= masks[name]
        optimiser.step()
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(torch.where(masks[name] == 1, parameter, start[name]))


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_only_the_selection_moves_and_as_in_a_dense_loop_with_masks(optimiser):
    model, reference = made(), made()
    selection, start = chosen(model), weights(model)
    vector = tune(model, selection, OPTIMISERS[optimiser])
    tune_densely(reference, selection, OPTIMISERS[optimiser])
    for name, weight in parameter_groups(model).backbone.items():
        assert torch.equal(outside(selection, name, weight), outside(selection, name, start[name]))
        torch.testing.assert_close(
            weight, parameter_groups(reference).backbone[name], rtol=1e-5, atol=1e-6
        )
    assert (selected(weights(model), selection) != selected(start, selection)).float().mean() > 0.5
    assert vector.k == sum(len(places.indices) for places in selection.values())


@pytest.mark.parametrize("shape", tiny.SHAPES)
def test_only_the_selection_moves_whatever_the_shape(shape):
    model = made(shape)
    selection, everything = (
        chosen(model),
        {name: weight.detach().clone() for name, weight in model.named_parameters()},
    )
    start = weights(model)
    vector = tune(model, selection, OPTIMISERS["AdamW with a large weight decay"])
    for name, weight in parameter_groups(model).backbone.items():
        entries = vector.tensors.get(name)
        moved = torch.zeros(weight.shape) if entries is None else entries.to_dense()
        assert torch.equal(weight.detach() - start[name], moved)
    inside = {id(weight) for weight in parameter_groups(model).backbone.values()}
    assert all(
        torch.equal(w, everything[name])
        for name, w in model.named_parameters()
        if id(w) not in inside
    )


def test_an_optimiser_with_a_closure_learns_where_the_closure_writes_the_values():
    def lbfgs(parameters):
        return torch.optim.LBFGS(parameters, lr=0.5, max_iter=5, line_search_fn="strong_wolfe")

    model = made()
    selection, start = chosen(model), weights(model)
    flat = nn.Parameter(selected(start, selection))
    reference, expected = made(), lbfgs([flat])

    def closure():
        tuning.write()
        optimiser.zero_grad()
        (loss := loss_of(model)).backward()
        return loss

    def plain_closure():
        sizes, dense = [len(places.indices) for places in selection.values()], {}
        for (name, places), values in zip(selection.items(), flat.split(sizes), strict=True):
            whole = start[name].view(-1).index_copy(0, places.indices, values).view(places.shape)
            dense[f"roberta.{name}"] = whole
        expected.zero_grad()
        inputs = {"input_ids": INPUTS, "labels": LABELS}
        (loss := torch.func.functional_call(reference, dense, (), inputs).loss).backward()
        return loss

    with sparse_tuning(model, selection) as tuning:
        optimiser = lbfgs(tuning.parameters())
        optimiser.step(closure)
    expected.step(plain_closure)
    torch.testing.assert_close(
        selected(weights(model), selection), flat.detach(), rtol=1e-3, atol=1e-4
    )
    assert (flat - selected(start, selection)).abs().max() > 0.01
    for name, weight in parameter_groups(model).backbone.items():
        assert torch.equal(outside(selection, name, weight), outside(selection, name, start[name]))


@pytest.mark.parametrize("shape", tiny.SHAPES)
def test_the_flat_gradient_holds_the_dense_gradients_entries(shape):
    model, reference = made(shape), made(shape)
    selection = chosen(model)
    loss_of(reference).backward()
    dense = {
        name: torch.zeros_like(w) if w.grad is None else w.grad
        for name, w in parameter_groups(reference).backbone.items()
    }
    with sparse_tuning(model, selection) as tuning:
        loss_of(model).backward()
        torch.testing.assert_close(
            tuning.values.grad, selected(dense, selection), rtol=1e-6, atol=1e-8
        )
        assert tuning.values.grad.any()


def test_gradients_of_two_backward_passes_add_up():
    model, reference = made(), made()
    selection = chosen(model)
    for row in (slice(0, 1), slice(1, 2)):
        loss_of(reference, row).backward()
    dense = {name: weight.grad for name, weight in parameter_groups(reference).backbone.items()}
    with sparse_tuning(model, selection) as tuning:
        loss_of(model, slice(0, 1)).backward()
        first = tuning.values.grad.clone()
        loss_of(model, slice(1, 2)).backward()
        torch.testing.assert_close(
            tuning.values.grad, selected(dense, selection), rtol=1e-5, atol=1e-7
        )
        assert not torch.equal(tuning.values.grad, first)


def test_gradients_left_by_an_earlier_loop_are_not_gathered():
    model, reference = made(), made()
    loss_of(model).backward()
    with (
        sparse_tuning(model, chosen(model)) as tuning,
        sparse_tuning(reference, chosen(model)) as expected,
    ):
        loss_of(model).backward()
        loss_of(reference).backward()
    assert torch.equal(tuning.values.grad, expected.values.grad)


def test_dense_gradients_are_dropped_and_those_of_the_head_are_not():
    model = made()
    with sparse_tuning(model, chosen(model)):
        loss_of(model).backward()
        assert all(weight.grad is None for weight in parameter_groups(model).backbone.values())
        assert model.lm_head.dense.weight.grad is not None


def test_at_most_one_dense_gradient_exists_at_a_time():
    model, counts = made(), []
    everything = parameter_groups(model).backbone.values()
    with sparse_tuning(model, chosen(model)):
        for weight in everything:
            if weight.requires_grad:
                weight.register_hook(
                    lambda _: counts.append(sum(w.grad is not None for w in everything))
                )
        loss_of(model).backward()
    assert len(counts) > 10
    assert max(counts) <= 1


def test_clipping_and_zero_grad_on_the_model_see_the_flat_gradient():
    model = made()
    for parameter in model.lm_head.parameters():
        parameter.requires_grad_(parameter is model.get_input_embeddings().weight)
    with sparse_tuning(model, chosen(model)) as tuning:
        (100 * loss_of(model)).backward()
        norm = tuning.values.grad.norm()
        assert torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0) == pytest.approx(norm.item())
        assert tuning.values.grad.norm() == pytest.approx(1, rel=1e-4)
        model.zero_grad()
        assert tuning.values.grad is None


def test_entries_without_a_gradient_do_not_move_without_weight_decay():
    model = made()
    unused = TensorMask(
        torch.tensor([60 * 16, 60 * 16 + 3]), (75, 16)
    )  # an embedding that the inputs do not have
    model.get_output_embeddings().weight = nn.Parameter(
        model.get_input_embeddings().weight.detach().clone()
    )
    selection = {**chosen(model), "embeddings.word_embeddings.weight": unused}
    vector = tune(model, selection, OPTIMISERS["Adam"])
    assert not vector.tensors["embeddings.word_embeddings.weight"].values.any()


@pytest.mark.parametrize("explicit", [True, False])
def test_with_nothing_selected_the_head_alone_can_be_trained(explicit):
    model = made()
    model.get_output_embeddings().weight = nn.Parameter(
        model.get_input_embeddings().weight.detach().clone()
    )
    start, selection = weights(model), chosen(model, 0) if explicit else {}
    before = model.lm_head.dense.weight.detach().clone()
    with sparse_tuning(model, selection) as tuning:
        optimiser = torch.optim.AdamW(
            [*tuning.parameters(), *model.lm_head.parameters()], LEARNING_RATE
        )
        loss_of(model).backward()
        optimiser.step()
        vector = tuning.vector()
    assert vector.k == 0
    assert not torch.equal(model.lm_head.dense.weight, before)
    assert all(
        torch.equal(weight, start[name])
        for name, weight in parameter_groups(model).backbone.items()
    )


def test_a_selection_of_everything_equals_plain_tuning():
    model, reference = made(), made()
    everything = chosen(model, "100%")
    tune(model, everything, OPTIMISERS["Adam"])
    tune_densely(reference, everything, OPTIMISERS["Adam"])
    for name, weight in parameter_groups(model).backbone.items():
        torch.testing.assert_close(
            weight, parameter_groups(reference).backbone[name], rtol=1e-5, atol=1e-6
        )


def assert_left_as_found(model, tuning, flags):
    """Flags as they were, no parameter of ours, no hook on gradients or optimisers."""
    assert {name: weight.requires_grad for name, weight in model.named_parameters()} == flags
    model.zero_grad()
    loss_of(model).backward()
    assert all((w.grad is not None) == w.requires_grad for w in model.parameters())
    after = weights(model)
    tuning.values.grad = torch.ones_like(tuning.values)
    torch.optim.SGD(tuning.parameters(), 1.0).step()
    assert all(
        torch.equal(weight, after[name])
        for name, weight in parameter_groups(model).backbone.items()
    )


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_the_model_is_left_as_it_was_found_but_for_what_was_learnt(error):
    model = made()
    model.get_output_embeddings().weight = nn.Parameter(
        model.get_input_embeddings().weight.detach().clone()
    )
    model.get_input_embeddings().weight.requires_grad_(False)
    flags = {name: weight.requires_grad for name, weight in model.named_parameters()}
    selection, start = chosen(model), weights(model)

    def learn():
        with sparse_tuning(model, selection) as tuning:
            seen.append(tuning)
            assert {id(tuning.values)} <= {id(parameter) for parameter in model.parameters()}
            optimiser = torch.optim.SGD(tuning.parameters(), 1.0)
            loss_of(model).backward()
            optimiser.step()
            if error:
                raise error

    seen = []
    if error:
        with pytest.raises(error):
            learn()
    else:
        learn()
    learnt = weights(model)
    assert torch.equal(selected(learnt, selection), seen[0].values)
    assert any(not torch.equal(learnt[name], start[name]) for name in start)
    assert_left_as_found(model, seen[0], flags)


def test_values_set_by_hand_are_written_on_leaving():
    model = made()
    selection = chosen(model)
    with sparse_tuning(model, selection) as tuning, torch.no_grad():
        tuning.values.fill_(0.5)
    assert (selected(weights(model), selection) == 0.5).all()


def test_strides_of_parameters_do_not_matter():
    wide = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    strided, plain = nn.Linear(3, 4, bias=False), nn.Linear(3, 4, bias=False)
    start = wide.mT.clone().contiguous()
    strided.weight, plain.weight = nn.Parameter(wide.mT), nn.Parameter(start.clone())
    assert not strided.weight.is_contiguous()
    selection = {"weight": TensorMask(torch.tensor([1, 4, 11]), (4, 3))}
    for layer in (strided, plain):
        with sparse_tuning(layer, selection) as tuning:
            optimiser = torch.optim.SGD(tuning.parameters(), 0.1)
            layer(torch.arange(6.0).view(2, 3)).square().sum().backward()
            optimiser.step()
    assert torch.equal(strided.weight, plain.weight)
    assert (plain.weight != start).view(-1).nonzero().view(-1).tolist() == [1, 4, 11]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_entries_of_half_precision_weights_are_kept_in_float32(dtype):
    """As with master weights: steps that half precision would lose add up."""
    layer = nn.Linear(6, 5, bias=False, dtype=dtype)
    start = layer.weight.detach().clone()
    chosen_indices = [0, 7, 29]
    selection = {"weight": TensorMask(torch.tensor(chosen_indices), (5, 6))}
    master = start.view(-1)[chosen_indices].float()
    expected = master.clone()
    n_steps, step_size = 50, 1e-5
    with sparse_tuning(layer, selection) as tuning:
        optimizer = torch.optim.SGD(tuning.parameters(), step_size)
        for _ in range(n_steps):
            layer(torch.ones(1, 6, dtype=dtype)).sum().backward()  # a gradient of 1 everywhere
            optimizer.step()
            optimizer.zero_grad()
            expected -= step_size
        vector = tuning.vector()
    assert layer.weight.dtype == dtype
    assert tuning.values.dtype == torch.float32
    assert vector.tensors["weight"].values.equal(expected - master)
    # the weights hold the values rounded, and all others stay
    rounded = start.clone()
    rounded.view(-1)[chosen_indices] = expected.to(dtype)
    assert layer.weight.equal(rounded)


def test_float64_weights_are_tuned_in_float64():
    layer = nn.Linear(3, 1, bias=False, dtype=torch.float64)
    with sparse_tuning(layer, {"weight": TensorMask(torch.tensor([1]), (1, 3))}) as tuning:
        assert tuning.values.dtype == torch.float64


@pytest.mark.parametrize(
    "selection",
    [
        {"elsewhere.weight": TensorMask(torch.tensor([0]), (75, 16))},
        {"embeddings.word_embeddings.weight": TensorMask(torch.tensor([0]), (16, 75))},
    ],
)
def test_a_selection_that_does_not_fit_is_an_error_and_changes_nothing(selection):
    model = made()
    flags = {name: weight.requires_grad for name, weight in model.named_parameters()}
    with (
        pytest.raises(
            DeftxError, match=r"weight' \(.* is not in the model: select on its own delta"
        ),
        sparse_tuning(model, {**chosen(model), **selection}),
    ):
        raise AssertionError("never reached")
    assert {name: weight.requires_grad for name, weight in model.named_parameters()} == flags


def test_other_optimisers_do_not_write_the_values():
    model = made()
    selection = chosen(model)
    with sparse_tuning(model, selection) as tuning:
        with torch.no_grad():
            tuning.values.add_(1)
        before = weights(model)
        other = nn.Parameter(torch.ones(1))
        other.grad = torch.ones(1)
        torch.optim.SGD([other], 0.1).step()
        assert all(
            torch.equal(weight, before[name])
            for name, weight in parameter_groups(model).backbone.items()
        )


@pytest.mark.parametrize("shape", ["xlmr", "t5", "qwen"])
def test_what_is_tuned_counts_once_as_part_of_the_backbone(shape):
    model = getattr(tiny, shape)()
    before = parameter_groups(model).backbone.keys()
    with sparse_tuning(model, select(parameter_groups(model).trainable, "5%")):
        assert parameter_groups(model).backbone.keys() == before


def test_a_block_within_another_is_refused_and_the_outer_one_goes_on():
    model = made()
    with sparse_tuning(model, chosen(model)) as tuning:
        with (
            pytest.raises(DeftxError, match="under sparse tuning already"),
            sparse_tuning(model, chosen(model, seed=2)),
        ):
            pass
        assert dict(model.named_parameters())["sparse_values"] is tuning.values
    assert not hasattr(model, "sparse_values")


def test_a_vector_learnt_in_half_precision_gives_the_weights_that_were_left():
    model = made().to(torch.bfloat16)
    selection, before = chosen(model), weights(model)
    vector = tune(model, selection, lambda p: torch.optim.SGD(p, 5.0))
    after = weights(model)
    for name in selection:
        composed = before[name].float() + vector.tensors[name].to_dense()
        assert composed.to(torch.bfloat16).equal(after[name])
    moved = [entries.values for entries in vector.tensors.values()]
    assert any(not part.bfloat16().float().equal(part) for part in moved)  # some need float32
