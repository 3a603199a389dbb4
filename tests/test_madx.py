"""MAD-X 2.0: the published equations, what moves and what does not, and adapters kept, checked and
composed."""

from dataclasses import replace

import pytest
import tiny
import torch
from adapter_examples import IDS, equal
from fit_examples import QUICK, TEXT, TRAIN, VALID
from safetensors.torch import load_file, save_file
from torch.nn.functional import gelu, linear, relu

from deftx.config import changed, parse
from deftx.core.parameters import parameter_groups
from deftx.core.select import parse_k
from deftx.core.tensors import Head
from deftx.errors import DeftxError
from deftx.experiments.baselines import madx
from deftx.experiments.baselines.adapters import FILE, load_adapter, save_adapter
from deftx.experiments.baselines.config import MadxLanguageConfig, MadxTaskConfig
from deftx.models.heads import load_task_model
from deftx.models.loading import load_language_model
from deftx.models.tokenizers import load_tokenizer
from deftx.tasks.base import evaluate
from deftx.tasks.classification import CLASSIFICATION
from deftx.training import resume
from deftx.training.best import BestState

LANGUAGE = parse(MadxLanguageConfig, {"training": {**QUICK, "min_steps": 0}})
TASK = parse(MadxTaskConfig, {"training": QUICK})
WIDTH, LAYERS = 16, 2  # of the tiny bases
SHAPES = ["xlmr", "bert"]


@pytest.fixture(scope="module")
def language(bases):
    return madx.fit_language(bases(), TEXT, LANGUAGE)


@pytest.fixture(scope="module")
def task(bases, language):
    return madx.fit_task(bases(), TRAIN, VALID, TASK, source=language)


def parts(model, settings=LANGUAGE, spread=0.3, seed=1):
    """An adapter of `model` far from its start, biases included."""
    made = madx.untrained(model, settings)
    generator = torch.Generator().manual_seed(seed)
    for parameter in made.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * spread
    return made


# --- the equations ---


def bottleneck(x, part):
    return linear(relu(linear(x, part.down.weight, part.down.bias)), part.up.weight, part.up.bias)


def as_published(model, stack, layers):
    """The last hidden states, with the adapters' residuals and norms written as the `adapters`
    library has them."""
    body = model.base_model
    hidden = body.embeddings(IDS)
    invertible = stack[0].invertible
    e1, e2 = hidden[..., : WIDTH // 2], hidden[..., WIDTH // 2 :]
    e1 = e1 + bottleneck(e2, invertible.f)
    hidden = torch.cat([e1, e2 + bottleneck(e1, invertible.g)], -1)
    for number, layer in enumerate(body.encoder.layer):
        attended = layer.attention(hidden)[0]
        hidden = layer.output.dense(layer.intermediate(attended))
        for part in stack if number < layers else []:
            residual = hidden
            hidden = layer.output.LayerNorm(hidden + attended)
            hidden = bottleneck(hidden, part.layers[number]) + residual
        hidden = layer.output.LayerNorm(hidden + attended)
    return hidden


def transformed(model, hidden):
    """What the decoder of the language modelling head is given without adapters."""
    if hasattr(model, "cls"):
        return model.cls.predictions.transform(hidden)
    return model.lm_head.layer_norm(gelu(model.lm_head.dense(hidden)))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_language_model_with_an_adapter_computes_the_published_equations(bases, shape):
    model = load_language_model(bases(shape)).eval()
    made = parts(model)
    decoder = model.get_output_embeddings()
    with torch.no_grad():
        hidden = transformed(model, as_published(model, [made], LAYERS))
        y1, y2 = hidden[..., : WIDTH // 2], hidden[..., WIDTH // 2 :]
        y2 = y2 - bottleneck(y1, made.invertible.g)
        wanted = decoder(torch.cat([y1 - bottleneck(y2, made.invertible.f), y2], -1))
        plain = model(IDS).logits
        madx.attach(model, made, layers=LAYERS)
        found = model(IDS).logits
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert (found - plain).abs().max() > 0.1


@pytest.mark.parametrize("shape", SHAPES)
def test_a_classifier_with_a_stack_computes_the_published_equations(bases, shape):
    model = load_task_model(bases(shape), ("a", "b"))
    stack = parts(model), parts(model, TASK, seed=2)
    with torch.no_grad():
        hidden = as_published(model, stack, LAYERS - 1)
        wanted = model.classifier(hidden if shape == "xlmr" else model.bert.pooler(hidden))
        madx.attach(model, *stack, layers=LAYERS - 1)
        torch.testing.assert_close(model(IDS).logits, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_adapters_of_zeros_leave_the_output_as_it_is(bases, shape):
    for model in (
        load_language_model(bases(shape)).eval(),
        load_task_model(bases(shape), ("a", "b")),
    ):
        with torch.no_grad():
            before = model(IDS).logits
            madx.attach(
                model, parts(model, spread=0), parts(model, TASK, spread=0), layers=LAYERS - 1
            )
            assert model(IDS).logits.equal(before)


@pytest.mark.parametrize("width", [2, 7, 16])
def test_the_inverse_of_an_invertible_adapter_is_its_inverse(width):
    torch.manual_seed(width)
    coupling, x = madx.Coupling(width, 2), torch.randn(3, 5, width)
    with torch.no_grad():
        assert (coupling(x) - x).abs().max() > 0.05
        torch.testing.assert_close(coupling.inverse(coupling(x)), x)
        torch.testing.assert_close(coupling(coupling.inverse(x)), x)


# --- sizes ---


def test_at_the_width_of_xlm_r_base_adapters_have_the_papers_numbers_of_weights():
    def weights(made):
        return sum(parameter.numel() for parameter in made.parameters() if parameter.dim() == 2)

    assert weights(madx.Parts(768, 12, MadxLanguageConfig())) == 7_077_888 + 294_912
    assert weights(madx.Parts(768, 11, MadxTaskConfig())) == 11 * 2 * 768 * 768

    def share(made, k):
        return round(sum(parameter.numel() for parameter in made.parameters()) / k, 2)

    # as docs/experiments.md says
    assert share(madx.Parts(768, 12, MadxLanguageConfig()), 7_667_712) == 0.96
    assert share(madx.Parts(768, 11, MadxTaskConfig()), 14_155_776) == 0.92


def test_the_size_of_an_adapter_is_that_of_the_formula(language, task):
    inner, half, quarter = WIDTH // 2, WIDTH // 2, WIDTH // 4
    layer, coupling = 2 * WIDTH * inner + inner + WIDTH, 2 * (2 * half * quarter + quarter + half)
    assert language.size == language.provenance.extra["size"] == LAYERS * layer + coupling
    assert (
        task.size == task.provenance.extra["size"] == (LAYERS - 1) * (2 * WIDTH * WIDTH + 2 * WIDTH)
    )


def test_reductions_can_be_set(bases):
    settings = changed(LANGUAGE, {"reduction": 4, "invertible_reduction": 100})
    tensors = madx.fit_language(bases(), TEXT, settings).tensors
    assert tensors["layers.0.down.weight"].shape == (4, WIDTH)
    assert tensors["invertible.f.down.weight"].shape == (1, WIDTH // 2)
    with pytest.raises(DeftxError, match="reduction"):
        changed(LANGUAGE, {"reduction": 0})


@pytest.mark.parametrize("k", [1000, 2000, "30%", 5000])
def test_without_a_reduction_an_adapter_has_as_many_parameters_as_k_says(bases, k):
    """Also where that takes bottlenecks wider than the base, as a larger k on a small one does."""
    model = load_language_model(bases())
    count = parse_k(k, parameter_groups(model).trainable_size)
    for kind, layers in ((MadxLanguageConfig, LAYERS), (MadxTaskConfig, LAYERS - 1)):
        settings = madx.sized(model, parse(kind, {"k": k, "reduction": None}))
        size = sum(parameter.numel() for parameter in madx.untrained(model, settings).parameters())
        assert (
            abs(size - count) <= layers * (2 * WIDTH + 1) / 2
        )  # half of what one number more in each adds


def test_an_adapter_sized_by_k_is_put_on_as_it_was_learnt(bases):
    settings = changed(TASK, {"k": 2000, "reduction": None})
    adapter = madx.fit_task(bases(), TRAIN, VALID, settings, source=None)
    assert adapter.provenance.extra["reduction"] == WIDTH / 60
    assert adapter.tensors["layers.0.down.weight"].shape == (60, WIDTH)
    assert adapter.size == adapter.provenance.extra["size"] == 60 * (2 * WIDTH + 1) + WIDTH
    model = madx.compose(bases(), adapter, None)
    assert model.base_model.adapters[0].layers[0].down.out_features == 60


# --- what moves ---


LM_HEAD = {
    "lm_head.bias",
    *(f"lm_head.{part}.{kind}" for part in ("dense", "layer_norm") for kind in ("weight", "bias")),
}


def test_only_the_adapter_and_the_language_modelling_head_move_in_language_training(bases, moved):
    adapter = madx.fit_language(bases(), TEXT, LANGUAGE)
    own = {f"roberta.adapters.0.{name}" for name in adapter.tensors}
    assert moved == [own | LM_HEAD]
    assert {name.split(".")[0] for name in adapter.tensors} == {"layers", "invertible"}
    assert adapter.head is None


def test_only_the_task_adapter_and_the_head_move_in_task_training(bases, language, moved):
    adapter = madx.fit_task(bases(), TRAIN, VALID, TASK, source=language)
    own = {f"roberta.adapters.1.{name}" for name in adapter.tensors}
    assert moved == [own | set(adapter.head.tensors)]
    assert {name.split(".")[1] for name in adapter.tensors} == {
        str(number) for number in range(LAYERS - 1)
    }


def test_the_last_layer_has_no_adapters_at_transfer(bases, language, task):
    def logits(number):
        tensors = {
            n: t + 1 if n.startswith(f"layers.{number}.") else t
            for n, t in language.tensors.items()
        }
        return madx.compose(bases(), task, replace(language, tensors=tensors))(IDS).logits

    with torch.no_grad():
        assert logits(LAYERS - 1).equal(logits("none"))
        assert not logits(0).equal(logits("none"))


def test_a_task_is_learnt_on_top_of_its_source_language(bases, language, task):
    assert not equal(madx.fit_task(bases(), TRAIN, VALID, TASK, source=None), task)
    assert task.provenance.source == language.provenance


# --- the same again ---


def test_the_same_seed_gives_the_same_adapters_and_another_one_others(bases, language, task):
    assert equal(madx.fit_language(bases(), TEXT, LANGUAGE), language)
    assert equal(madx.fit_task(bases(), TRAIN, VALID, TASK, source=language), task)
    assert not equal(madx.fit_language(bases(), TEXT, changed(LANGUAGE, {"seed": 1})), language)


def test_a_training_that_is_cut_off_ends_bit_for_bit_as_one_that_is_not(
    bases, language, task, tmp_path, monkeypatch
):
    class Cut(BaseException):
        """The end of the process: nothing handles it."""

    steps, record = [], BestState.record

    def until_cut(best, step, *rest):
        steps.append(step)
        if steps == [2, 4]:
            raise Cut
        record(best, step, *rest)

    monkeypatch.setattr(BestState, "record", until_cut)
    monkeypatch.setattr(resume, "SECONDS_BETWEEN", 0.0)
    monkeypatch.setattr(resume, "LARGEST_SHARE_OF_TIME", 1e9)
    with pytest.raises(Cut):
        madx.fit_task(bases(), TRAIN, VALID, TASK, source=language, checkpoint_dir=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["madx.state.safetensors"]
    assert equal(
        madx.fit_task(bases(), TRAIN, VALID, TASK, source=language, checkpoint_dir=tmp_path), task
    )
    assert steps == [2, 4, 4]


def test_what_a_composed_model_scores_is_what_its_training_noted(bases, language, task):
    model = madx.compose(bases(), task, language)
    scores = evaluate(CLASSIFICATION, model, load_tokenizer(bases()), VALID, QUICK["length"])
    assert scores["macro_f1"] == pytest.approx(task.provenance.log["training"].best_score, abs=1e-9)
    assert not model.training
    assert list(model.config.id2label.values()) == ["early", "late"]
    with torch.no_grad():
        assert not model(IDS).logits.equal(madx.compose(bases(), task, None)(IDS).logits)


def test_adapters_come_back_from_a_folder_bit_for_bit(language, task, tmp_path):
    for number, adapter in enumerate((language, task)):
        save_adapter(adapter, tmp_path / str(number))
        again = load_adapter(tmp_path / str(number))
        assert equal(again, adapter)
        assert (again.method, again.provenance) == ("madx", adapter.provenance)
        assert (again.head and again.head.labels) == (adapter.head and adapter.head.labels)


# --- what is refused ---


def test_a_file_that_is_no_adapter_is_refused_in_one_line(language, tmp_path):
    save_adapter(language, tmp_path)
    path, name = tmp_path / FILE, "body/layers.0.up.bias"
    whole, tensors = (
        path.read_bytes(),
        {name: tensor.clone() for name, tensor in load_file(path).items()},
    )
    about = '{"format_version": 1, "method": "madx", "labels": null, "info": {}}'

    def written(change, about=about):
        save_file({**tensors, **change}, path, metadata={"about": about})

    cases = {
        "truncated": lambda: path.write_bytes(whole[:-5]),
        "empty": lambda: path.write_bytes(b""),
        "not a number": lambda: written({name: tensors[name] * float("nan")}),
        "of integers": lambda: written({name: tensors[name].int()}),
        "a strange tensor": lambda: written({"x": torch.zeros(3)}),
        "a later format": lambda: written({}, about.replace("1", "2")),
        "no method": lambda: written({}, about.replace("method", "kind")),
        "labels of numbers": lambda: written({}, about.replace("null", "[1]")),
        "no JSON": lambda: written({}, "{"),
        "missing": path.unlink,
    }
    for damage in cases.values():
        damage()
        with pytest.raises(DeftxError) as caught:
            load_adapter(tmp_path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_adapters_that_do_not_belong_together_are_refused_in_one_line(
    bases, language, task, tmp_path
):
    other = tiny.save_base(tmp_path / "other", seed=3)
    fewer = {name: tensor for name, tensor in language.tensors.items() if "invertible" not in name}
    extra = {**language.provenance.extra, "reduction": -1}
    wider = replace(language.provenance, extra=extra)
    narrower = {**language.tensors, "layers.0.up.bias": torch.zeros(3)}
    head = Head(
        {name: tensor for name, tensor in task.head.tensors.items() if "dense" not in name},
        task.head.labels,
    )
    cases = [
        ("was made on", lambda: madx.compose(other, task, None)),
        ("was made on", lambda: madx.fit_task(other, TRAIN, VALID, TASK, source=language)),
        ("not a language adapter", lambda: madx.compose(bases(), task, task)),
        (
            "not a task adapter",
            lambda: madx.compose(bases(), replace(language, head=task.head), None),
        ),
        ("has no head", lambda: madx.compose(bases(), language, None)),
        ("of lora is not", lambda: madx.compose(bases(), task, replace(language, method="lora"))),
        ("does not fit", lambda: madx.compose(bases(), task, replace(language, tensors=fewer))),
        ("does not fit", lambda: madx.compose(bases(), task, replace(language, tensors=narrower))),
        (
            "setting reduction",
            lambda: madx.compose(bases(), task, replace(language, provenance=wider)),
        ),
        ("head is not one of", lambda: madx.compose(bases(), replace(task, head=head), None)),
    ]
    for message, wrong in cases:
        with pytest.raises(DeftxError, match=message) as caught:
            wrong()
        assert "\n" not in str(caught.value)


def test_a_base_of_another_build_is_refused_before_any_training(bases):
    with pytest.raises(
        DeftxError, match="does not support models of type 'distilbert', only bert, camembert"
    ):
        madx.fit_language(bases("distilbert"), TEXT, LANGUAGE)
