# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Your own network through a hypernetwork
#
# A hypernetwork generates all weights of another network, the *main network*, from an embedding
# of the task. To learn a new task without forgetting the earlier ones, it is enough that the
# hypernetwork goes on generating the same weights for the earlier embeddings. A regulariser sees
# to that (von Oswald et al. 2020).
#
# The main network can be any `nn.Module`, unchanged. Here it is a small convolutional network for
# the digits that ship with scikit-learn.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training.plugins import EvaluationPlugin
from torch import nn

from avalanche_hnet import FixedTarget, HyperModel, HypernetTemplate, HyperNetwork
from avalanche_hnet.benchmarks import SplitDigits

torch.set_num_threads(1)  # networks this small are slower with more

# %% [markdown]
# ## The main network
#
# Nothing in it knows of hypernetworks or of tasks.


# %%
class SmallCNN(nn.Module):
    """Two convolutions and a linear layer, for images of 8 × 8."""

    def __init__(self, n_classes):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
        )
        self.classifier = nn.Linear(64, n_classes)

    def forward(self, x):
        return self.classifier(self.features(x))


# %% [markdown]
# ## The hypernetwork
#
# `HyperNetwork` looks at the shapes of the main network's parameters and generates them all, in
# one vector. `init="hyperfan"` starts it such that the generated weights have the scale that the
# main network wants.

# %%
cnn = SmallCNN(n_classes=2)
hypernetwork = HyperNetwork(cnn, embedding_dim=8, hidden=(16, 16), init="hyperfan")
print(hypernetwork.sizes)

# %% [markdown]
# It has more parameters than it generates weights, since its last layer has 16 for each of them.
# A main network of some size calls for `ChunkedHyperNetwork`, which generates weights in pieces
# and can be smaller than a single main network.
#
# ## A strategy with the regulariser, and one without
#
# `HyperModel` is a multi-task model like others of Avalanche: it is called with task labels and
# adds an embedding for each new one. `HypernetTemplate` is the strategy that trains it. Without a
# regulariser it is plain fine-tuning.

# %%
benchmark = SplitDigits(5, return_task_id=True, class_ids_from_zero_in_each_exp=True, seed=0)


def learn(regularizer, seed=0):
    """The strategy after five tasks; accuracies in %, and how far weights moved, by task."""
    torch.manual_seed(seed)
    cnn = SmallCNN(n_classes=2)
    hypernetwork = HyperNetwork(cnn, embedding_dim=8, hidden=(16, 16), init="hyperfan")
    model = HyperModel(cnn, hypernetwork)
    strategy = HypernetTemplate(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=1e-3),
        regularizer=regularizer,
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=32,
        train_epochs=10,
        eval_mb_size=500,
        evaluator=EvaluationPlugin(accuracy_metrics(experience=True), loggers=[]),
    )
    accuracies, moved = np.full((5, 5), np.nan), np.full((5, 5), np.nan)
    for trained, experience in enumerate(benchmark.train_stream):
        strategy.train(experience)
        metrics = strategy.eval(benchmark.test_stream[: trained + 1])
        for task in range(trained + 1):
            accuracy = metrics[f"Top1_Acc_Exp/eval_phase/test_stream/Task00{task}/Exp00{task}"]
            accuracies[trained, task] = 100 * accuracy
            moved[trained, task] = metrics[f"Hypernet/WeightsMoved/Task00{task}"]
    return strategy, accuracies, moved


runs = {"without regulariser": learn(None), "FixedTarget(beta=0.1)": learn(FixedTarget(beta=0.1))}
for name, (_, accuracies, _) in runs.items():
    print(f"{name:22} {accuracies[-1].mean():5.1f} % at the end, by task {accuracies[-1].round(1)}")

# %% [markdown]
# ## What the regulariser does
#
# After each experience the strategy publishes `Hypernet/WeightsMoved`: for each task learned so
# far, how far its generated weights are from what they were when it was learned, relative to
# their norm. This is what the regulariser holds down, and forgetting follows from it.

# %%
figure, axes = plt.subplots(2, 2, figsize=(8, 5), sharex=True, sharey="row", layout="constrained")
for column, (name, (_, accuracies, moved)) in zip(axes.T, runs.items(), strict=True):
    for task in range(5):
        column[0].plot(accuracies[:, task], "o-", label=f"task {task}", markersize=4)
        column[1].plot(moved[:, task], "o-", markersize=4)
    column[0].set_title(name)
    column[1].set_xlabel("after training on task")
    column[1].set_xticks(range(5))
axes[0, 0].set_ylabel("test accuracy in %")
axes[1, 0].set_ylabel("weights moved")
for ax in axes.flat:
    ax.grid(alpha=0.3)
figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right center")
figure.savefig("own-network.png", dpi=100)

# %% [markdown]
# ![Accuracy and movement of the weights, with and without regulariser](own-network.png)
#
# ## How strong?
#
# Where earlier tasks get worse, and `WeightsMoved` grows, raise `beta`. Where new tasks are
# learned badly, lower it.

# %%
for beta in (0.01, 0.1, 1.0, 10.0):
    _, accuracies, moved = learn(FixedTarget(beta=beta))
    print(
        f"beta={beta:<6} {accuracies[-1].mean():5.1f} % at the end, "
        f"{np.diag(accuracies).mean():5.1f} % when just learned, "
        f"weights moved by {moved[-1, :-1].mean():.2f}"
    )

# %% [markdown]
# Here the strong ones keep everything and cost the new tasks next to nothing: five pairs of digits
# are not much for this hypernetwork. On harder streams the two columns pull against each other.
#
# ## A network to take away
#
# `main_network` is a copy of the main network with the weights of one task. It stands alone: no
# hypernetwork, no task labels.

# %%
strategy, accuracies, _ = runs["FixedTarget(beta=0.1)"]
network = strategy.model.main_network(task_label=0).eval()
dataset = benchmark.test_stream[0].dataset
images = torch.stack([image for image, *_ in dataset])
labels = torch.tensor([label for _, label, *_ in dataset])
correct = network(images).argmax(1) == labels
print(f"{type(network).__name__} of task 0: {correct.float().mean():.1%}")

# %% [markdown]
# ## Where to go from here
#
# - Why protecting a hundred tasks takes hardly longer than protecting two:
#   [all tasks at the price of one](../explanation/all-tasks.md).
# - Nobody tells the task in evaluation: [who infers the task](who-infers-the-task.md).
# - Other regularisers: `ValuePreserving` and `Jacobian` look at each step alone, `EWC` protects
#   the hypernetwork's parameters, whatever they generate.
