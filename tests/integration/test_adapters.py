"""PEFT, accelerate and bitsandbytes around and inside unified models."""

import copy

import pytest
import torch
from torch import nn

import itnet
from tests.integration.tools import (
    ids,
    language_model,
    recomputed,
    same,
    same_gradients,
    same_weights,
    stack,
    third_party,
    total,
    train,
)

pytestmark = [
    pytest.mark.foreign,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),  # peft calls it, transformers moved
]
TARGETS = {"llama": ["q_proj", "v_proj", "down_proj"], "bert": ["query", "value", "dense"]}
TASKS = {"llama": "CAUSAL_LM", "bert": "SEQ_CLS"}


def unified_or_refused(model, example):
    """The unified model; the original where ``unify`` refuses it, which takes a reason and a remedy."""
    refusal = None
    try:
        return itnet.unify(model, example)
    except itnet.ItnetError as error:
        refusal = error
    assert refusal.reason and refusal.remedy
    return model


@pytest.fixture
def peft():
    return third_party("peft")


def lora(peft, name, **options):
    return peft.LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS[name], task_type=TASKS[name], **options)


def adapted(peft, name, model, **options):
    """The model with adapters that do something already."""
    torch.manual_seed(1)
    wrapped = peft.get_peft_model(model, lora(peft, name, **options))
    with torch.no_grad():
        for key, value in wrapped.named_parameters():
            if "lora_B" in key:
                nn.init.normal_(value, std=0.1)
    return wrapped


def logits_loss(model, batch):
    return total(model(input_ids=batch).logits)


def adam(parameters):
    return torch.optim.AdamW(parameters, lr=1e-2)


class TestLora:
    @pytest.mark.slow
    @pytest.mark.parametrize("name", list(TARGETS))
    def test_around_adapters(self, peft, name):
        original = adapted(peft, name, language_model(name, use_cache=False), lora_dropout=0.1).train()
        unified = itnet.unify(original, (), example_kwargs={"input_ids": ids()}, copy=True)
        assert isinstance(unified, peft.PeftModel) and unified.integrals
        self.alike(original, unified)

    @pytest.mark.slow
    @pytest.mark.parametrize("name", list(TARGETS))
    def test_inside_adapters(self, peft, name):
        model = language_model(name, use_cache=False)
        inside = itnet.unify(model, (), example_kwargs={"input_ids": ids()}, copy=True)
        before = inside(ids()).logits
        original, unified = (adapted(peft, name, m, lora_dropout=0.1).train() for m in (model, inside))
        assert not torch.equal(before, unified(ids()).logits), "the adapters take effect"
        self.alike(original, unified)

    def alike(self, original, unified):
        trainable = [name for name, p in original.named_parameters() if p.requires_grad]
        assert trainable == [name for name, p in unified.named_parameters() if p.requires_grad]
        same_gradients(original, unified, input_ids=ids())
        same(*(train(model, logits_loss, [ids(), ids(3, 5)], adam, steps=4) for model in (original, unified)))
        same_weights(original, unified)
        with original.disable_adapter(), unified.disable_adapter(), torch.no_grad():
            bare = unified.eval()(ids()).logits
            same(original.eval()(ids()).logits, bare)
        assert not torch.equal(bare, unified(ids()).logits)
        same(original(ids()).logits, unified(ids()).logits)
        first, second = original.merge_and_unload(), unified.merge_and_unload()
        same_weights(first, second)
        same(first(ids()).logits, second(ids()).logits)

    def test_saved_and_loaded(self, peft, tmp_path):
        base = language_model("llama", use_cache=False)
        unified = itnet.unify(
            adapted(peft, "llama", copy.deepcopy(base)), (), example_kwargs={"input_ids": ids()}, copy=True
        )
        unified.save_pretrained(tmp_path)
        assert (tmp_path / "adapter_model.safetensors").exists()
        loaded = peft.PeftModel.from_pretrained(base, tmp_path)
        same(loaded(ids()).logits, unified(ids()).logits)

    def test_two_adapters(self, peft):
        original = adapted(peft, "bert", language_model("bert"))
        unified = itnet.unify(original, (), example_kwargs={"input_ids": ids()}, copy=True)
        for model in (original, unified):
            torch.manual_seed(2)
            model.add_adapter("other", lora(peft, "bert", init_lora_weights=False))
        outputs = []
        for name in ("other", "default", "other"):
            original.set_adapter(name), unified.set_adapter(name)
            outputs.append(unified(ids()).logits)
            same(original(ids()).logits, outputs[-1])
        assert not torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[0], outputs[2])

    @pytest.mark.slow
    def test_generation(self, peft):
        original = adapted(peft, "llama", language_model("llama"))
        unified = itnet.unify(original, (), example_kwargs={"input_ids": ids()}, copy=True)
        expected, found = (
            model.generate(input_ids=ids(length=4), max_new_tokens=4, do_sample=False) for model in (original, unified)
        )
        assert expected.tolist() == found.tolist()

    def test_with_gradient_checkpointing(self, peft):
        found = []
        for unify in (False, True):
            model = language_model("llama", use_cache=False).train()
            model.activation_checkpointing_enable()
            model.enable_input_require_grads()
            model = adapted(peft, "llama", model)
            if unify:
                model = itnet.unify(model, (), example_kwargs={"input_ids": ids()})
            found.append((model, recomputed(model, input_ids=ids(), operator="silu")))
        (original, expected), (unified, again) = found
        assert expected == again > 0
        same_gradients(original, unified, input_ids=ids())


class TestAccelerate:
    """Offloading gives every module hooks that bring its weights: it works, or unify says clearly that it cannot."""

    @pytest.fixture
    def accelerate(self):
        accelerate = third_party("accelerate")
        yield accelerate
        torch.set_autocast_enabled("cpu", False)  # whatever happened, the next test is none the worse for it
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)

    def works_or_refused(self, model, example):
        with torch.no_grad():
            expected = model(example)
            unified = unified_or_refused(model, example)
            for x in (example, torch.cat([example, example])):
                same(model(x), unified(x))
            same(expected, model(example))

    def test_offloaded_to_memory(self, accelerate):
        original, x = stack()
        self.works_or_refused(accelerate.cpu_offload(original.eval(), execution_device=torch.device("cpu")), x)

    def test_offloaded_to_disk(self, accelerate, tmp_path):
        original, x = stack()
        device = torch.device("cpu")
        self.works_or_refused(accelerate.disk_offload(original.eval(), str(tmp_path), execution_device=device), x)

    def test_dispatched_by_a_map(self, accelerate, tmp_path):
        original, x = stack()
        places = {"embed": "cpu", "blocks.0": "cpu", "blocks.1": "disk", "head": "disk"}
        options = dict(main_device="cpu", offload_dir=str(tmp_path), force_hooks=True)
        self.works_or_refused(accelerate.dispatch_model(original.eval(), places, **options), x)

    @pytest.mark.parametrize("unify_first", [True, False])
    def test_dispatched_afterwards(self, accelerate, unify_first):
        original, x = stack()
        unified = itnet.unify(original.eval(), x, copy=True)
        expected = original(x)
        dispatched = accelerate.dispatch_model(unified, {"": "cpu"}, main_device="cpu", force_hooks=True)
        same(expected, dispatched(x))
        accelerate.hooks.remove_hook_from_module(dispatched, recurse=True)
        same(expected, dispatched(x))

    @pytest.mark.parametrize("precision", ["no", "bf16"])
    def test_prepared(self, accelerate, precision):
        original, x = stack()
        unified = itnet.unify(original.train(), x, copy=True)
        losses = []
        for model in (original, unified):
            accelerator = accelerate.Accelerator(cpu=True, mixed_precision=precision, gradient_accumulation_steps=2)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
            prepared, optimizer = accelerator.prepare(model, optimizer)
            prepared.train()
            torch.manual_seed(0)
            for step in range(6):
                with accelerator.accumulate(prepared):
                    loss = total(prepared(x + step))
                    accelerator.backward(loss)
                    accelerator.clip_grad_norm_(prepared.parameters(), 1.0)
                    optimizer.step(), optimizer.zero_grad()
                losses.append(loss.detach())
                assert not torch.is_autocast_enabled("cpu"), "accelerate's autocast must not be entered twice"
            assert accelerator.unwrap_model(prepared) is model
        same(losses[:6], losses[6:])
        same_weights(original, unified)


@pytest.mark.parametrize("layer", ["Linear8bitLt", "Linear4bit"])
@pytest.mark.filterwarnings("ignore::UserWarning:bitsandbytes")
def test_quantised_layers(layer):
    quantised = third_party("bitsandbytes").nn
    options = {"Linear8bitLt": dict(has_fp16_weights=False), "Linear4bit": dict(quant_type="nf4")}[layer]
    torch.manual_seed(0)
    conv, linear = nn.Conv1d(8, 64, 3, padding=1), getattr(quantised, layer)(64, 16, **options)
    model = nn.Sequential(conv, nn.AdaptiveAvgPool1d(1), nn.Flatten(), linear, nn.ReLU(), nn.Linear(16, 4)).to("cpu")
    x = torch.randn(3, 8, 12)
    try:
        expected = model.eval()(x)
    except Exception as error:
        pytest.skip(f"bitsandbytes itself does not run here: {error}")
    unified = unified_or_refused(model, x)
    same(expected, unified(x))
    same_gradients(model, unified, x)
    same(expected, model(x))
