"""Lightning trains a unified model as it trains the original: as a part of a LightningModule, and as the module."""

import copy

import pytest
import torch
from torch import nn

import itnet
from tests.integration.tools import Stack, same, same_weights, stack, third_party, through_graphs

lightning = third_party("pytorch_lightning")

pytestmark = [
    pytest.mark.filterwarnings("ignore::pytorch_lightning.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec:FutureWarning"),
]


class Classifier(lightning.LightningModule):
    def __init__(self, net):
        super().__init__()
        self.net = net
        self.example_input_array = torch.randn(3, 7, 5)
        self.losses = []

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, index):
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss)
        self.losses.append(loss.detach())
        return loss

    def validation_step(self, batch, index):
        self.log("validation", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def predict_step(self, batch, index):
        return self(batch[0])

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


def fit(module, tmp_path, **options):
    """Two epochs; losses, the validation's result and predictions."""
    generator = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(24, 7, 5, generator=generator), torch.randint(4, (24,), generator=generator)
    batches = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(inputs, targets), batch_size=4)
    lightning.seed_everything(0, verbose=False)
    trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path, **options,
    )  # fmt: skip
    trainer.fit(module, batches, batches)
    validated = trainer.validate(module, batches, verbose=False)[0]["validation"]
    predicted = torch.cat(trainer.predict(module, batches, return_predictions=True))
    assert len(module.losses) == 12 and bool(predicted.any())
    return torch.stack(module.losses), validated, predicted


@pytest.fixture
def original():
    net, _ = stack()
    return Classifier(net)


OPTIONS = [
    {},
    {"gradient_clip_val": 0.1, "accumulate_grad_batches": 2},
    {"precision": "bf16-mixed"},
    {"precision": "64-true"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_unified_network_in_a_lightning_module(original, options, tmp_path):
    module = copy.deepcopy(original)
    module.net = itnet.unify(module.net, torch.randn(4, 7, 5))
    expected, found = fit(original, tmp_path, **options), fit(module, tmp_path, **options)
    assert expected[1] == found[1]
    same(expected, found)
    same_weights(original, module)
    assert through_graphs(module.net)


@pytest.mark.parametrize("options", OPTIONS[:2], ids=str)
def test_a_unified_lightning_module(original, options, tmp_path):
    module = itnet.unify(original, torch.randn(4, 7, 5), copy=True)
    assert isinstance(module, lightning.LightningModule) and module.integrals
    expected, found = fit(original, tmp_path, **options), fit(module, tmp_path, **options)
    assert expected[1] == found[1]
    same(expected, found)
    same_weights(original, module)


def test_the_example_of_a_lightning_module_is_found(original):
    assert itnet.unify(original).integrals


def test_a_network_in_parts(tmp_path):
    torch.manual_seed(0)
    original = Classifier(Stack(branching=True))
    module = copy.deepcopy(original)
    module.net = itnet.unify(module.net, torch.randn(4, 7, 5))
    assert len(module.net.parts) >= 2
    same(fit(original, tmp_path), fit(module, tmp_path))
    same_weights(original, module)


def test_checkpoints_of_lightning(original, tmp_path):
    """Saved by one, loaded by the other."""
    module = itnet.unify(original, torch.randn(4, 7, 5), copy=True)
    fit(module, tmp_path)
    module.trainer.save_checkpoint(tmp_path / "last.ckpt")
    loaded = Classifier.load_from_checkpoint(tmp_path / "last.ckpt", net=stack()[0])
    same_weights(loaded, module)
    original.load_state_dict(torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"])
    same_weights(original, module)
