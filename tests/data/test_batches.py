"""Batches: an order that is a function of (seed, epoch), and a selection that is exact."""

from types import SimpleNamespace

import pytest
import torch

from conftest import build_module
from small_sets import indices, make


def test_the_order_is_a_function_of_seed_and_epoch():
    def order(seed, epoch):
        loader = make(seed=seed).train_dataloader()
        loader.sampler.set_epoch(epoch)
        return indices(loader)

    assert torch.equal(order(1, 0), order(1, 0))
    assert not torch.equal(order(1, 0), order(1, 1))
    assert not torch.equal(order(1, 0), order(2, 0))
    assert torch.equal(order(1, 0).sort().values, order(2, 5).sort().values)


def test_lightning_moves_the_order_on_with_the_epoch(tmp_path):
    from lightning import Callback, Trainer

    class Orders(Callback):
        def __init__(self):
            self.seen = {}

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            self.seen.setdefault(trainer.current_epoch, []).append(batch.indices)

    data, orders = make(), Orders()
    silent = {
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "logger": False,
    }
    Trainer(
        default_root_dir=tmp_path, accelerator="cpu", max_epochs=2, callbacks=[orders], **silent
    ).fit(build_module(), data)
    for epoch in (0, 1):
        loader = data.train_dataloader()
        loader.set_epoch(epoch)
        assert torch.equal(torch.cat(orders.seen[epoch]), indices(loader))


def test_a_batch_holds_the_pixels_and_label_of_its_indices():
    data = make(batch_size=50)
    batch = next(iter(data.train_dataloader()))
    assert batch.x.dtype == torch.float32
    assert batch.x.shape == (50, 1, 28, 28)
    assert torch.equal((batch.x * 255).round().to(torch.uint8), data.x["train"][batch.indices])
    assert torch.equal(batch.y, data.y["train"][batch.indices])


@pytest.mark.parametrize(
    "settings", [{}, {"binarization": "stochastic"}, {"dequantize": True}], ids=str
)
def test_batches_are_made_on_the_device_that_trains(settings):
    data = make(**settings)
    strategy = SimpleNamespace(root_device=torch.device("meta"))
    rank = {"global_rank": 0, "world_size": 1}
    data.trainer = SimpleNamespace(strategy=strategy, training=False, overfit_batches=0, **rank)
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        assert {each.device.type for each in next(iter(loader))[:3]} == {"meta"}
    assert {each.device.type for each in data.examples(3)[:3]} == {"cpu"}


def test_a_last_short_batch_is_kept():
    loader = make(batch_size=300).train_dataloader()
    assert [len(batch.y) for batch in loader] == [300, 20]
    assert len(loader) == 2
