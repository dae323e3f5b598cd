"""Models of transformers keep all that transformers gives them: generation, checkpoints, switches, the Trainer."""

import copy
import inspect

import pytest
import torch
from torch import nn

import itnet
from tests.integration.tools import (
    call,
    gradients,
    ids,
    language_model,
    recomputed,
    same,
    same_gradients,
    same_weights,
    third_party,
    through_graphs,
    total,
)

pytestmark = [
    pytest.mark.foreign,
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing_:FutureWarning"),  # to be renamed in transformers 6
]


def pair(name, example=None, **changes):
    """The original and its unified copy."""
    model = language_model(name, **changes)
    example = example or {"input_ids": ids()}
    if name == "t5":
        example = {"decoder_input_ids": ids(length=5), **example}
    return model, itnet.unify(model, (), example_kwargs=example, copy=True)


@pytest.fixture(
    scope="module", params=["gpt2", "llama", *(pytest.param(name, marks=pytest.mark.slow) for name in ("t5", "mamba"))]
)
def generators(request):
    return pair(request.param)


class TestGeneration:
    def same_tokens(self, generators, tokens=8, **how):
        expected, found = (call(model.generate, ids(length=5), max_new_tokens=tokens, **how) for model in generators)
        assert expected.shape[0] == 2 and expected.tolist() == found.tolist()

    def test_greedy_with_a_cache(self, generators):
        self.same_tokens(generators, do_sample=False)

    def test_greedy_without_a_cache(self, generators):
        loops = (
            generators[0].config.model_type == "mamba"
        )  # over positions in Python: each length is a graph of its own
        self.same_tokens(generators, tokens=2 if loops else 8, do_sample=False, use_cache=False)

    def test_sampling(self, generators):
        self.same_tokens(generators, do_sample=True, top_k=20, temperature=0.7)

    def test_beams(self, generators):
        if generators[0].config.model_type == "mamba":
            pytest.skip("transformers has no beam search for stateful models")
        self.same_tokens(generators, do_sample=False, num_beams=3)

    def test_padded_prompts(self, generators):
        prompt = ids(length=5)
        prompt[0, :2] = 0
        self.same_tokens(generators, do_sample=False, attention_mask=(prompt != 0).long())

    def test_the_cache_of_a_prompt_goes_on(self, generators):
        if generators[0].config.model_type == "t5":
            pytest.skip("the decoder's cache is covered by generate")
        key = "cache_params" if generators[0].config.model_type == "mamba" else "past_key_values"
        outputs = []
        for model in generators:
            with torch.no_grad():
                first = model(ids(), use_cache=True)
                second = model(ids(length=1), use_cache=True, **{key: first[key]})
            outputs.append((first.logits, second.logits))
        same(*outputs)


class TestCheckpoints:
    @pytest.mark.parametrize("name", ["gpt2", "bert"])
    def test_saved_and_loaded(self, name, tmp_path):
        original, unified = pair(name, use_cache=False)
        with torch.no_grad():
            unified.get_input_embeddings().weight.mul_(2)
        unified.save_pretrained(tmp_path)
        assert (tmp_path / "model.safetensors").exists()
        loaded = type(original).from_pretrained(tmp_path).eval()
        assert loaded.config.architectures == [type(original).__name__]
        same_weights(loaded, unified)
        same(loaded(ids()).logits, unified(ids()).logits)
        again = itnet.unify(loaded, (), example_kwargs={"input_ids": ids()})
        same(again(ids()).logits, unified(ids()).logits)

    def test_saved_by_the_original_and_loaded_into_the_unified_model(self, tmp_path):
        original, unified = pair("llama", use_cache=False)
        with torch.no_grad():
            original.lm_head.weight.mul_(3)
        original.save_pretrained(tmp_path)
        unified.load_state_dict(type(original).from_pretrained(tmp_path).state_dict())
        same(original(ids()).logits, unified(ids()).logits)

    def test_config_is_the_original_one(self):
        original, unified = pair("bert")
        assert unified.config.to_dict() == original.config.to_dict()
        assert unified.num_parameters() == original.num_parameters() and unified.device == original.device


@pytest.mark.slow
def test_more_tokens():
    original, unified = pair("gpt2")
    for model in (original, unified):
        torch.manual_seed(0)
        model.resize_token_embeddings(111)
    assert unified(ids()).logits.shape[-1] == unified.config.vocab_size == 111
    assert unified.lm_head.weight is unified.transformer.wte.weight
    more = ids(vocabulary=111)
    same(original(more).logits, unified(more).logits)
    same_gradients(original, unified, more)


class TestGradientCheckpointing:
    @pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
    def test_switched_on_before_unify(self, name):
        original = language_model(name, use_cache=False).train()
        original.gradient_checkpointing_enable()
        self.alike(original, itnet.unify(original, (), example_kwargs={"input_ids": ids()}, copy=True))

    @pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
    def test_switched_on_and_off_afterwards(self, name):
        original, unified = pair(name, use_cache=False)
        for model in (original, unified):
            model.train().gradient_checkpointing_enable()
        self.alike(original, unified)
        for model in (original, unified):
            model.gradient_checkpointing_disable()
        same_gradients(original, unified, input_ids=ids())
        assert self.again(unified) == 0

    def alike(self, original, unified):
        same_gradients(original, unified, input_ids=ids())
        assert self.again(unified) == self.again(original) > 0

    def again(self, model):
        """How often the backward pass runs an operator that every layer has and no backward formula calls."""
        operator = "silu" if model.config.model_type == "llama" else "native_layer_norm"
        return recomputed(model, input_ids=ids(), operator=operator)


def test_modes_and_dropout():
    original, unified = pair("gpt2", use_cache=False)
    for train in (True, False, True):
        original.train(train), unified.train(train)
        assert all(module.training is train for module in unified.modules())
        same(call(original, ids()).logits, call(unified, ids()).logits)
        same_gradients(original, unified, ids())


@pytest.mark.parametrize("name", ["gpt2", "bert", pytest.param("t5", marks=pytest.mark.slow)])
def test_attentions_and_hidden_states(name):
    with_cache = name == "t5"  # in parts, therefore
    original, unified = pair(name, attn_implementation="eager", use_cache=with_cache)
    given = {"input_ids": ids()} | ({"decoder_input_ids": ids(length=5)} if name == "t5" else {})
    wishes = ({"output_attentions": True}, {"output_hidden_states": True}, {"return_dict": False})
    for wanted in wishes[:1] if with_cache else wishes:
        expected, found = original(**given, **wanted), unified(**given, **wanted)
        assert type(expected) is type(found)
        if isinstance(expected, dict):
            assert list(expected) == list(found)
        same(_parts(expected), _parts(found), 1e-5)  # the softmax is taken in another order of axes


def _parts(output):
    """The tensors of an output, those in nested tuples included; caches left out."""
    values = list(output.values()) if isinstance(output, dict) else list(output)
    return [value for value in values if isinstance(value, (tuple, torch.Tensor))]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
def test_another_attention_implementation(name):
    original, unified = pair(name, use_cache=False)
    assert unified(ids(), output_attentions=True).get("attentions") in (None, (), (None, None))
    for implementation in ("eager", "sdpa", "eager"):
        for model in (original, unified):
            model.set_attn_implementation(implementation)
        expected, found = (model(ids(), output_attentions=implementation == "eager") for model in (original, unified))
        same(_parts(expected), _parts(found), 1e-5)
    assert found.attentions[0].shape == (2, 2, 9, 9)


def test_losses_and_inputs_of_other_kinds():
    original, unified = pair("llama", use_cache=False)
    embedded = original.get_input_embeddings()(ids()).detach()
    for given in ({"input_ids": ids(), "labels": ids()}, {"inputs_embeds": embedded}, {"input_ids": ids(3, 4)}):
        same(_parts(original(**given)), _parts(unified(**given)))
    assert through_graphs(unified)


class Reviews(torch.utils.data.Dataset):
    """Rows as ``datasets`` gives them, with columns that no model knows."""

    def __init__(self, rows):
        self.tokens = ids(rows, 9)

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, row):
        tokens = self.tokens[row]
        ragged = list(range(row % 3))  # as a tensor this would fail: it must be dropped
        return {"input_ids": tokens, "labels": int(tokens[0] > 40), "spans": ragged, "text": f"review {row}"}


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"label_smoothing_factor": 0.1, "gradient_accumulation_steps": 2}], ids=str)
def test_the_trainer(options, tmp_path, capsys):
    transformers = third_party("transformers")
    third_party("accelerate")
    original, unified = pair("bert", {"input_ids": ids(), "labels": torch.tensor([0, 1])})
    assert inspect.signature(unified.forward) == inspect.signature(original.forward)
    results = []
    for model in (original, unified):
        start = copy.deepcopy(model.state_dict())
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path), per_device_train_batch_size=4, max_steps=6, learning_rate=1e-3, seed=3,
            report_to=[], save_strategy="no", logging_strategy="no", eval_strategy="no", disable_tqdm=True,
            use_cpu=True, **options,
        )  # fmt: skip
        trainer = transformers.Trainer(model, arguments, train_dataset=Reviews(32), eval_dataset=Reviews(8))
        trained, evaluated = trainer.train(), trainer.evaluate()
        assert any(not torch.equal(start[name], value) for name, value in model.state_dict().items())
        results.append(
            (trained.training_loss, evaluated["eval_loss"], trainer.predict(Reviews(8)).predictions.tolist())
        )
    assert results[0] == results[1]
    same_weights(original, unified)


@pytest.mark.slow
def test_adamw_by_hand_with_a_schedule():
    transformers = third_party("transformers")
    original, unified = pair("t5", use_cache=False)
    given = {"input_ids": ids(), "labels": ids(length=5)}
    losses = []
    for model in (original, unified):
        model.train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        schedule = transformers.get_linear_schedule_with_warmup(optimizer, 1, 3)
        for step in range(3):
            loss = call(model, seed=step, **given).loss
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step(), schedule.step(), optimizer.zero_grad()
            losses.append(loss.item())
    assert losses[:3] == losses[3:]
    same_weights(original, unified)


def test_checkpoint_functions_of_a_users_loss():
    """A head that a user puts on top, and a checkpoint around the whole unified model."""
    original, unified = pair("bert")
    found = []
    for model in (original, unified):
        loss = torch.utils.checkpoint.checkpoint(lambda x, m=model: total(m(x)), ids(), use_reentrant=False)
        found.append(torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad]))
    same(*found)
    assert gradients(unified, ids()).keys() == gradients(original, ids()).keys()
