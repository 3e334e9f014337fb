"""Avalanche's heads, dynamic modules and models, and what becomes of each in PriorEWCPlugin."""

import torch
import torch.nn.functional as F
from avalanche.benchmarks import tensors_benchmark
from avalanche.models import (
    PNN,
    CosineIncrementalClassifier,
    CosineLinear,
    ExpertGate,
    FeatureExtractorBackbone,
    FeatureExtractorModel,
    FeCAMClassifier,
    IcarlNet,
    IncrementalClassifier,
    LeNet5,
    MlpVAE,
    MTSimpleCNN,
    MTSimpleMLP,
    MTSimpleSequenceClassifier,
    MTSlimResNet18,
    MultiHeadClassifier,
    MultiTaskModule,
    NCMClassifier,
    Prompt,
    SCRModel,
    SimpleCNN,
    SimpleMLP,
    SimpleSequenceClassifier,
    SLDAResNetModel,
    SlimResNet18,
    TrainEvalModel,
    as_multitask,
)
from avalanche.models.batch_renorm import BatchRenorm2D
from avalanche.models.bic_model import BiasLayer
from avalanche.models.cosine_layer import SplitCosineLinear
from avalanche.models.packnet import PackNetModel
from torch import nn

from avalanche_hnet import TaskStatisticsPlugin
from tests.support.models import MultiHead
from tests.support.streams import tensors


def features(size=8):
    return nn.Sequential(nn.Linear(6, size), nn.Tanh())


def with_head(head):
    return nn.Sequential(features(), head)


class Prompted(nn.Module):
    """A pool of prompts before a linear layer, on inputs of six numbers."""

    def __init__(self, batchwise=False):
        super().__init__()
        self.prompt = Prompt(
            2, 6, prompt_pool=True, prompt_key=True, pool_size=3, top_k=1,
            batchwise_prompt=batchwise,
        )  # fmt: skip
        self.classifier = nn.Linear(6, 6)

    def forward(self, x):
        prompted = self.prompt(x[:, None])["prompted_embedding"]
        return self.classifier(prompted.mean(1).tanh())


class OfflineExpertGate(ExpertGate):
    """Without the pretrained networks, which would be downloaded."""

    def __init__(self):
        nn.Module.__init__(self)
        self.expert = nn.Linear(6, 6)


def renormalised():
    layers = nn.Conv2d(1, 2, 2), BatchRenorm2D(2), nn.Tanh(), nn.Flatten(), nn.LazyLinear(6)
    model = nn.Sequential(nn.Unflatten(1, (1, 2, 3)), *layers)
    model.eval()(torch.randn(2, 6))
    return model


def backbone():
    return nn.Sequential(FeatureExtractorBackbone(features(), "0"), nn.Linear(8, 6))


def right(make, tasks, shape=(6,), plugins=list, offset=None):
    """``tasks``: whether each experience has a task label of its own, with its own classes."""
    offset = not tasks if offset is None else offset
    return {"make": make, "tasks": tasks, "shape": shape, "plugins": plugins, "offset": offset}


def head(**options):
    return lambda: MultiHead(MultiHeadClassifier(8, **options))


IMAGE = (3, 16, 16)
RIGHT = {
    "IncrementalClassifier": right(lambda: with_head(IncrementalClassifier(8)), False),
    "IncrementalClassifier(masking=False)": right(
        lambda: with_head(IncrementalClassifier(8, masking=False)), False
    ),
    "IncrementalClassifier(initial_out_features=5)": right(
        lambda: with_head(IncrementalClassifier(8, initial_out_features=5)), False
    ),
    "MultiHeadClassifier": right(head(), True),
    "MultiHeadClassifier(masking=False)": right(head(masking=False), True),
    "MultiHeadClassifier(initial_out_features=5)": right(head(initial_out_features=5), True),
    "MultiHeadClassifier with unique classes": right(head(), True, offset=True),
    "as_multitask": right(lambda: as_multitask(SimpleMLP(2, 6, 8), "classifier"), True),
    "MTSimpleCNN": right(MTSimpleCNN, True, (3, 32, 32)),
    "MTSimpleMLP": right(lambda: MTSimpleMLP(6, 8), True),
    "MTSimpleSequenceClassifier": right(lambda: MTSimpleSequenceClassifier(4, 5), True, (3, 4)),
    "MTSlimResNet18": right(
        lambda: MTSlimResNet18(2, nf=1), True, (3, 32, 32), lambda: [TaskStatisticsPlugin()]
    ),
    "PNN": right(lambda: PNN(1, 6, 4), True),
    "PNN of two layers": right(lambda: PNN(2, 6, 4), True),
    "CosineLinear": right(lambda: with_head(CosineLinear(8, 6)), False),
    "SplitCosineLinear": right(lambda: with_head(SplitCosineLinear(8, 4, 2)), False),
    "BiasLayer": right(
        lambda: nn.Sequential(features(), nn.Linear(8, 6), BiasLayer([2, 3])), False
    ),
    "BatchRenorm2D": right(renormalised, False),
    "FeatureExtractorModel": right(
        lambda: FeatureExtractorModel(features(), nn.Linear(8, 6)), False
    ),
    "FeatureExtractorBackbone": right(backbone, False),
    "Prompt": right(Prompted, False),
    "SimpleMLP": right(lambda: SimpleMLP(6, 6, 8), False),
    "SimpleCNN": right(lambda: SimpleCNN(6), False, IMAGE),
    "SimpleSequenceClassifier": right(lambda: SimpleSequenceClassifier(4, 5, 6), False, (3, 4)),
    "LeNet5": right(lambda: LeNet5(6, 1), False, (1, 32, 32)),
    "SlimResNet18": right(lambda: SlimResNet18(6, nf=1), False, (3, 32, 32)),
    "IcarlNet": right(lambda: IcarlNet(6, n=1), False, (3, 8, 8)),
}

REFUSED = {
    "CosineIncrementalClassifier": lambda: with_head(CosineIncrementalClassifier(8, 2)),
    "TrainEvalModel": lambda: TrainEvalModel(features(), nn.Linear(8, 6), NCMClassifier()),
    "SCRModel": lambda: SCRModel(features(), nn.Linear(8, 6)),
    "NCMClassifier": lambda: with_head(NCMClassifier()),
    "FeCAMClassifier": lambda: with_head(FeCAMClassifier()),
    "SLDAResNetModel": lambda: SLDAResNetModel(imagenet_pretrained=False),
    "ExpertGate": OfflineExpertGate,
    "PackNetModel": lambda: PackNetModel(SimpleMLP(6, 6, 8)),
    "Prompt(batchwise_prompt=True)": lambda: Prompted(batchwise=True),
    "MlpVAE": lambda: MlpVAE((6,), 2),
}


def stream_of(case, n_samples=6, n_experiences=3):
    """Two classes in each experience: unique, or from zero with a task label for each."""
    generator = torch.Generator().manual_seed(3)
    data = []
    for index in range(n_experiences):
        x = torch.randn(n_samples, *case["shape"], generator=generator)
        data.append((x, torch.arange(n_samples) % 2 + (2 * index if case["offset"] else 0)))
    labels = [*range(n_experiences)] if case["tasks"] else [0] * n_experiences
    return tensors_benchmark(train_tensors=data, test_tensors=data, task_labels=labels).train_stream


def squared_gradients(model, experience):
    """Sum over samples, each in a batch of two copies of itself, which no squeeze() can mistake."""
    x, y, labels = tensors(experience)
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    total = {n: torch.zeros_like(p, dtype=torch.float64) for n, p in parameters.items()}
    model.eval()
    for i in range(len(x)):
        is_multi_task = isinstance(model, MultiTaskModule)
        rest = [labels[[i, i]]] if is_multi_task else []
        loss = F.cross_entropy(model(x[[i, i]], *rest)[:1], y[i : i + 1])
        gradients = torch.autograd.grad(loss, [*parameters.values()], allow_unused=True)
        for name, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                total[name] += gradient.double() ** 2
    return total


def padded(old, new):
    """The old tensor with new rows of zeros."""
    if old is None:
        return torch.zeros_like(new)
    return torch.cat([old, old.new_zeros(len(new) - len(old), *new.shape[1:])])
