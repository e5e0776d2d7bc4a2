"""Fine-tuning runs that tests/test_ddp.py makes in one process and in two."""

from __future__ import annotations

import os
import warnings

import torch
from lightning import LightningModule, Trainer
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.callbacks import BaseFinetuning
from torch.utils.data import DataLoader, Dataset

from defectnet.hub import from_pretrained
from defectnet.lab.data import Augmentation, LabDataModule
from defectnet.tasks.finetuning import FinetuneTask

EPOCHS, BATCH = 3, 4
DATA = {"batch_size": BATCH, "validation": 0.3, "augmentation": Augmentation(share=0.5), "seed": 1}


class Recorded(FinetuneTask):
    """Notes the loss of every epoch, the metrics, and which rows this rank saw."""

    def on_fit_start(self):
        self.losses, self.seen, self.validated = [], [], []

    def training_step(self, item):
        self.seen.append((self.current_epoch, item.rows.tolist()))
        return super().training_step(item)

    def validation_step(self, item, batch_idx, dataloader_idx=0):
        self.validated.append((self.current_epoch, dataloader_idx, item.rows.tolist()))
        return super().validation_step(item, batch_idx, dataloader_idx)

    def on_train_epoch_end(self):
        self.losses.append(float(self.trainer.callback_metrics["train/loss"]))


def trainer(devices, callbacks=()):
    return Trainer(
        accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", max_epochs=EPOCHS,
        plugins=[LightningEnvironment()], callbacks=list(callbacks), logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip


def weights(task):
    return {name: value.detach().clone() for name, value in task.model.state_dict().items()}


def run(lab, checkpoint, devices):
    """Train; return what this rank saw and ended with."""
    torch.manual_seed(0)
    task = Recorded(from_pretrained(checkpoint))
    fit = trainer(devices)
    fit.fit(task, LabDataModule(lab, **DATA))
    metrics = {name: float(value) for name, value in fit.callback_metrics.items()}
    return {
        "weights": weights(task), "losses": task.losses, "seen": task.seen, "validated": task.validated,
        "metrics": metrics,
    }  # fmt: skip


class Unfreezing(BaseFinetuning):
    """The usual callback: freezes the backbone, and gives it back to the optimiser at the second epoch."""

    def freeze_before_training(self, pl_module):
        self.freeze([child for name, child in pl_module.model.named_children() if name != "identity"])

    def finetune_function(self, pl_module, epoch, optimizer):
        if epoch == 1:
            backbone = [child for name, child in pl_module.model.named_children() if name != "identity"]
            self.unfreeze_and_add_param_group(backbone, optimizer, lr=1e-3)


class Naive(LightningModule):
    """A loaded network with an optimiser over what is not frozen."""

    def __init__(self, checkpoint):
        super().__init__()
        self.model = from_pretrained(checkpoint).train()

    def training_step(self, item):
        return self.model.loss_terms(self.model(item.batch), item.batch, item.targets)["identity"].mean()

    def configure_optimizers(self):
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-3)


class Rows(Dataset):
    """Validation rows in an ordinary data set, into whose loader Lightning puts its own sampler."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, row):
        return row


class Counting(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer, self.rows = torch.nn.Linear(1, 1), []

    def validation_step(self, rows, batch_idx):
        self.rows += rows.tolist()


def run_naive(lab, checkpoint, devices):
    """Do what the usual ways do: unfreeze with the callback, and validate with a plain loader."""
    torch.manual_seed(0)
    task = Naive(checkpoint)
    data = LabDataModule(lab, **(DATA | {"validation": 0.0}))
    trainer(devices, [Unfreezing()]).fit(task, data)
    counting = Counting()
    trainer(devices).validate(counting, DataLoader(Rows(17), batch_size=4), verbose=False)
    return {"weights": weights(task), "validated": counting.rows}


def rank(lab, checkpoint, out, environment):
    """Do this rank's part, in a process of its own."""
    os.environ.update(environment)
    warnings.simplefilter("ignore")
    found = {"run": run(lab, checkpoint, 2), "naive": run_naive(lab, checkpoint, 2)}
    torch.save(found, out / f"rank-{environment['LOCAL_RANK']}.pt")
