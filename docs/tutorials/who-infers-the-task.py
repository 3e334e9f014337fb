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
# # Who infers the task?
#
# A hypernetwork has a solution for each task, and so has a network with a head for each. In
# training the benchmark says which task a sample belongs to. In evaluation often nobody does. Then
# the model can try every task's solution on a sample and believe the one that is surest. This
# notebook shows how that works, how to see whether it works, and when it fails.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training.plugins import EvaluationPlugin
from torch import nn

from avalanche_hnet import (
    FixedTarget,
    HyperModel,
    HypernetTemplate,
    HyperNetwork,
    TaskInference,
    TaskInferencePlugin,
)
from avalanche_hnet.benchmarks import SplitDigits
from avalanche_hnet.metrics import task_inference_metrics

torch.set_num_threads(1)  # networks this small are slower with more

# %% [markdown]
# ## The stream and the model
#
# Five pairs of digits. The labels are the digits themselves, 0 to 9: in the *class-incremental*
# scenario, a model that is not told the pair has to say which of ten digits it sees. Task labels
# are there for training (`return_task_id=True`).
#
# Each task's main network has two outputs, for the two digits of its pair. `multi_head=True,
# reuse_units=True` says so, and puts them in the columns of their digits.

# %%
benchmark = SplitDigits(5, return_task_id=True, seed=0)


class Noise(nn.Module):
    """Adds noise to its inputs in training."""

    def __init__(self, std):
        super().__init__()
        self.std = std

    def forward(self, x):
        return x + self.std * torch.randn_like(x) if self.training else x


def make_strategy(input_noise=0.0, prior_variance=None):
    """A hypernetwork and its strategy, which infers tasks in evaluation."""
    torch.manual_seed(0)
    mlp = nn.Sequential(
        nn.Flatten(), Noise(input_noise), nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 2)
    )
    hypernetwork = HyperNetwork(mlp, embedding_dim=8, hidden=(32, 32), init="hyperfan")
    model = HyperModel(mlp, hypernetwork, multi_head=True, reuse_units=True)
    return HypernetTemplate(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=1e-3),
        regularizer=FixedTarget(beta=1.0),
        prior_variance=prior_variance,
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=32,
        train_epochs=10,
        eval_mb_size=500,
        plugins=[TaskInferencePlugin(criterion="entropy")],
        evaluator=EvaluationPlugin(
            accuracy_metrics(stream=True), task_inference_metrics(stream=True), loggers=[]
        ),
    )


# %% [markdown]
# `TaskInferencePlugin` is all there is to add. While the strategy evaluates, it puts a
# `TaskInference` around the model, which gets no task labels; `task_inference_metrics` compare
# the tasks that it finds with the true ones.


# %%
def learn(strategy):
    """Shares of the test images whose task, and whose digit, is found after all five tasks."""
    for experience in benchmark.train_stream:
        strategy.train(experience)
    metrics = strategy.eval(benchmark.test_stream)
    return [
        value
        for name in ("TaskInference_Acc_Stream", "Top1_Acc_Stream")
        for key, value in metrics.items()
        if key.startswith(f"{name}/eval_phase")
    ]


strategy = make_strategy()
task_found, digit_found = learn(strategy)
print(f"task inferred {task_found:.1%}, digit recognised {digit_found:.1%}")

# %% [markdown]
# Guessing the task would be right for 20 %. Is it the main networks that are bad, or the inference?
# With the task told:

# %%
experiences = [experience.dataset for experience in benchmark.test_stream]
images = torch.stack([image for dataset in experiences for image, *_ in dataset])
digits = torch.tensor([digit for dataset in experiences for _, digit, *_ in dataset])
true_tasks = torch.tensor([task for task, dataset in enumerate(experiences) for _ in dataset])


def accuracy_if_told(model):
    """Share of digits that are recognised with the task told."""
    with torch.no_grad():
        return (model.eval()(images, true_tasks).argmax(1) == digits).float().mean().item()


print(f"digit recognised if the task is told: {accuracy_if_told(strategy.model):.1%}")

# %% [markdown]
# The networks have learned their own two digits, and have not forgotten them. What fails is the
# choice among them.
#
# ## How the choice is made
#
# `TaskInference` can be used by itself. It runs all tasks' main networks on the images, in one
# batched pass, and takes for each image the one whose class probabilities have the lowest entropy.

# %%
inference = TaskInference(strategy.model, criterion="entropy")
log_probabilities = inference(images)  # (B, 10)
print("inferred", inference.inferred_tasks[::45].tolist())
print("true    ", true_tasks[::45].tolist())

# %% [markdown]
# By hand, for two classes per task. An entropy of 0 is certainty, log 2 = 0.69 is no idea.


# %%
def entropies(model):
    """Entropy (5, B) of the prediction for each image under each task."""
    with torch.no_grad():
        outputs = model.eval().forward_tasks(images, range(5)).double()
    probabilities = outputs.softmax(-1)
    return torch.special.entr(probabilities).sum(-1)


by_task = entropies(strategy.model)
print(f"same choice: {(by_task.argmin(0) == inference.inferred_tasks).float().mean():.0%}")
own = by_task.gather(0, true_tasks[None])[0]
others = by_task[torch.arange(5)[:, None] != true_tasks]
print(f"median entropy under the right task {own.median():.4f}, others {others.median():.4f}")

# %% [markdown]
# So this is when it fails: a network that is sure of digits which it has never seen is as good a
# candidate as the one that knows them. Nothing in training tells a network to be unsure there.
#
# ## Networks that know what they do not know
#
# Two things help. Noise on the inputs keeps a network from being sure far from its own data. A
# prior over the generated weights (`prior_variance`) keeps weights small, and with them the logits.

# %%
strategies = {
    "plain": strategy,
    "noise on the inputs": make_strategy(input_noise=1.0),
    "prior on the weights": make_strategy(prior_variance=0.1),
}
for name, trained in strategies.items():
    if trained is not strategy:
        task_found, digit_found = learn(trained)
    print(
        f"{name:20} task inferred {task_found:.1%}, digit recognised {digit_found:.1%}, "
        f"if the task is told {accuracy_if_told(trained.model):.1%}"
    )

# %% [markdown]
# Above, how sure networks are of digits of their own pair and of others. Below, the confusion
# matrices of tasks. For TensorBoard, `task_inference_metrics(confusion_matrix=True)` draws these.

# %%
figure, axes = plt.subplots(2, 3, figsize=(9, 5.6), layout="constrained")
for (top, bottom), (name, trained) in zip(axes.T, strategies.items(), strict=True):
    by_task = entropies(trained.model)
    is_own = torch.arange(5)[:, None] == true_tasks
    bins = np.linspace(0, np.log(2), 25)
    for label, values in (("own digits", by_task[is_own]), ("other digits", by_task[~is_own])):
        share = np.full(len(values), 100 / len(values))
        top.hist(values.numpy(), bins, weights=share, histtype="step", label=label)
    top.set_title(name)
    top.set_xlabel("entropy")
    top.set_ylim(0, 100)
    inference = TaskInference(trained.model)
    inference(images)
    pairs = torch.stack([true_tasks, inference.inferred_tasks])
    confusion = torch.zeros(5, 5).index_put_(tuple(pairs), torch.ones(len(images)), True)
    bottom.imshow(confusion.numpy(), cmap="Blues", vmin=0, vmax=95)
    for true, inferred in np.ndindex(5, 5):
        number = int(confusion[true, inferred])
        colour = "white" if number > 55 else "black"
        bottom.text(inferred, true, number, ha="center", va="center", color=colour, fontsize=8)
    bottom.set_xlabel("inferred task")
axes[0, 0].set_ylabel("% of the predictions")
axes[0, 0].legend()
axes[1, 0].set_ylabel("true task")
figure.savefig("who-infers-the-task.png", dpi=100)

# %% [markdown]
# ![Entropies, and confusion matrices of tasks](who-infers-the-task.png)
#
# Other digits are now less certain than a network's own ones, though far from always, and the
# inference is as good as that difference. 270 images per task do not say what a digit is not: on
# Split MNIST, with some 12,000 per task, the same method recognises 72 % of the digits.
#
# ## When to expect trouble
#
# - Tasks that look alike: only classes tell them apart, and no network has seen the others'.
# - Few samples, large networks and long training: sure of everything.
# - Many tasks: each is one more that may be wrongly sure.
#
# Where the answer does not depend on the pair (the *domain-incremental* scenario: the digit's
# place in its pair), a wrong task may still give the right answer, so accuracy is higher than the
# share of tasks inferred.
#
# Tasks can be inferred of networks with heads as well: give the plugin
# `posterior=ewc.posterior` of a `PriorEWCPlugin`. In regression the task with the least epistemic
# variance is chosen, which needs a posterior.
