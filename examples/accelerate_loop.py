"""Prune in a loop of Hugging Face Accelerate: one line more than without pruning.

pip install 'hyperprune[timm,transformers]'
python examples/accelerate_loop.py
"""

import timm
import torch
from accelerate import Accelerator
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from hyperprune import Budget, Search, export_pruned, hyperize

accelerator = Accelerator(gradient_accumulation_steps=2)
images, labels = torch.randn(64, 3, 32, 32), torch.randint(0, 10, (64,))  # your data set
loader = DataLoader(TensorDataset(images, labels), batch_size=8, shuffle=True)

model = timm.create_model("resnet10t", num_classes=10)  # your trained network
hyper = hyperize(model, images[:1])
optimizer = torch.optim.SGD(hyper.parameter_groups(lr=0.01, weight_decay=1e-4), momentum=0.9)
search = Search(hyper, optimizer, Budget(macs=0.5), steps=8)

network, optimizer, loader = accelerator.prepare(hyper, optimizer, loader)
search.attach(optimizer)  # the one line more: accumulation and skipped steps need no thought
for _ in range(2):
    for x, y in loader:
        with accelerator.accumulate(network):
            accelerator.backward(F.cross_entropy(network(x), y))
            optimizer.step()
            optimizer.zero_grad()
    accelerator.print(search.progress())

slim = export_pruned(accelerator.unwrap_model(network))
