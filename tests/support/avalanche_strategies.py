"""Every strategy and plugin of avalanche.training, built as a user would, on tiny streams."""

import importlib
import inspect
import pkgutil
import warnings
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from unittest import mock

import avalanche.training
import torch
from avalanche.benchmarks import benchmark_from_datasets, nc_benchmark, split_online_stream
from avalanche.benchmarks.utils.detection_dataset import make_detection_dataset
from avalanche.core import BasePlugin
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.models import (
    PNN,
    FeatureExtractorModel,
    FeCAMClassifier,
    MobilenetV1,
    MTSimpleMLP,
    NCMClassifier,
    SCRModel,
    TrainEvalModel,
)
from avalanche.models.expert_gate import ExpertGate
from avalanche.models.packnet import PackNetModel
from avalanche.training import losses, plugins
from avalanche.training import supervised as strategies
from avalanche.training.supervised.lamaml_v2 import LaMAML
from avalanche.training.supervised.naive_object_detection import (
    ObjectDetectionTemplate,
    detection_collate_fn,
)
from avalanche.training.templates import BaseSGDTemplate
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import MultiStepLR, StepLR
from torch.utils.data import TensorDataset

from avalanche_hnet import Categorical
from tests.support.avalanche_networks import (
    N_CLASSES,
    N_IN,
    Detector,
    WithFeatures,
    autoencoder,
    features,
    growing,
    mlp,
    reconstruction,
    small_alexnet,
    small_vit,
)


def class_stream(shape=(N_IN,), n_experiences=3, n_samples=6, task_labels=False):
    """Two classes in each experience, ``n_samples`` of them together, in [0, 1] as images are."""
    generator = torch.Generator().manual_seed(1)
    y = torch.arange(n_samples * n_experiences) % (2 * n_experiences)
    data = TensorDataset(torch.rand(len(y), *shape, generator=generator), y)
    data.targets = y.tolist()
    return nc_benchmark(
        data, data, n_experiences, task_labels=task_labels, shuffle=False,
        class_ids_from_zero_in_each_exp=task_labels,
    )  # fmt: skip


def online_stream():
    """Pieces of three samples, which know the experience that they were cut from."""
    benchmark = class_stream()
    benchmark.train_stream = split_online_stream(
        benchmark.train_stream, experience_size=3, access_task_boundaries=True
    )
    return benchmark


def detection_stream():
    """Images with a box each."""
    data = []
    for first in (0, 2):
        target = [{"boxes": torch.tensor([[0.0, 0, 4, 4]]), "labels": torch.tensor([1]),
                   "image_id": torch.tensor(first + i)} for i in range(2)]  # fmt: skip
        images = [(torch.full((3, 8, 8), 0.1 * (first + i)), target[i]) for i in range(2)]
        data.append(
            make_detection_dataset(
                images, targets=target, task_labels=0, collate_fn=detection_collate_fn
            )
        )
    return benchmark_from_datasets(train=data, test=data)


def options(model, others, **more):
    """What every strategy takes."""
    return {
        "model": model,
        "optimizer": SGD(model.parameters(), 0.05),
        "train_mb_size": 3,
        "eval_mb_size": 6,
        "plugins": [*others],
        "evaluator": plugins.EvaluationPlugin(),
        **more,
    }


@dataclass(frozen=True)
class Case:
    """How something is built, what it is trained on, and what it needs."""

    build: Callable
    """From the plugins that stand beside it."""
    stream: Callable = class_stream
    likelihood: object = None
    """The one that must be passed to PriorEWCPlugin."""
    needs: tuple[str, ...] = ()
    """Packages that Avalanche does not install."""
    replaced: tuple[tuple[str, object], ...] = ()
    """What fails here in Avalanche's own code, and what takes its place."""

    @property
    def missing(self):
        return [package for package in self.needs if find_spec(package) is None]

    @contextmanager
    def environment(self):
        with ExitStack() as stack, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name, substitute in self.replaced:
                stack.enter_context(mock.patch(name, substitute))
            yield


def case(
    strategy, make=mlp, *, stream=class_stream, likelihood=None, needs=(), replaced=(), **more
):
    """A strategy with a model of its own; ``more``: its other arguments, but for those in MADE."""

    def build(others):
        made = {name: value() if name in MADE else value for name, value in more.items()}
        return strategy(**options(make(), others, **made))

    return Case(build, stream, likelihood, needs, replaced)


MADE = {"criterion"}  # arguments that are made anew for each strategy: some have a state
CE = nn.CrossEntropyLoss


def plugin(make, model=mlp, **more):
    """A plugin beside Naive, before ours."""

    def build(others):
        return strategies.Naive(**options(model(), [make(), *others], **more))

    return Case(build)


def icarl(others):
    given = options(features(), others)
    feature_extractor, classifier = given.pop("model"), nn.Linear(8, N_CLASSES)
    both = [*feature_extractor.parameters(), *classifier.parameters()]
    return strategies.ICaRL(
        **given | {"optimizer": SGD(both, 0.05)},
        feature_extractor=feature_extractor, classifier=classifier, memory_size=6,
        buffer_transform=None, fixed_memory=True,
    )  # fmt: skip


def streaming_lda(others):
    given = options(features(), others, criterion=CE())
    del given["optimizer"]
    return strategies.StreamingLDA(
        slda_model=given.pop("model"), input_size=8, num_classes=N_CLASSES, **given
    )


def er_aml(others):
    model = WithFeatures()
    return strategies.ER_AML(
        **options(model, others), feature_extractor=model.feature_extractor, mem_size=60,
        batch_size_mem=2,
    )  # fmt: skip


def packnet(others):
    """Avalanche puts the list of plugins into its own as one element, and calls none of them."""
    given = options(PackNetModel(mlp()), [], train_epochs=2)
    strategy = strategies.PackNet(**given, post_prune_epochs=1, prune_proportion=0.5)
    strategy.plugins[:1] = others
    return strategy


def ar1(others):
    return strategies.AR1(
        train_mb_size=4, eval_mb_size=6, train_epochs=1, rm_sz=2, plugins=[*others],
        evaluator=plugins.EvaluationPlugin(),
    )  # fmt: skip


def learning_to_prompt(others):
    return strategies.LearningToPrompt(
        model_name="vit_base_patch16_224", pretrained=False, num_classes=N_CLASSES,
        train_mb_size=3, eval_mb_size=6, plugins=[*others], evaluator=plugins.EvaluationPlugin(),
    )  # fmt: skip


def generator_strategy():
    generator = autoencoder()
    return strategies.VAETraining(
        model=generator, optimizer=SGD(generator.parameters(), 0.01), train_mb_size=3,
        plugins=[plugins.GenerativeReplayPlugin()], evaluator=plugins.EvaluationPlugin(),
    )  # fmt: skip


def generative_replay(others):
    return strategies.GenerativeReplay(
        **options(mlp(), others, criterion=CE()), generator_strategy=generator_strategy()
    )


def generative_replay_plugins(others):
    replay = plugins.GenerativeReplayPlugin(generator_strategy=generator_strategy())
    return strategies.Naive(
        **options(mlp(), [replay, plugins.TrainGeneratorAfterExpPlugin(), *others])
    )


def expert_gate(others):
    model = ExpertGate(shape=(2, 8, 8), device="cpu", arch="alexnet")
    return strategies.ExpertGateStrategy(
        **options(model, others), ae_latent_dim=3, ae_train_mb_size=3, ae_train_epochs=1
    )


def early_stopping(others):
    evaluator = plugins.EvaluationPlugin(accuracy_metrics(stream=True))
    stopping = plugins.EarlyStoppingPlugin(1, "train_stream")
    given = options(mlp(), [stopping, *others], train_epochs=3, eval_every=1)
    return strategies.Naive(**given | {"evaluator": evaluator})


def scheduled(others):
    model = mlp()
    optimizer = SGD(model.parameters(), 0.05)
    scheduler = plugins.LRSchedulerPlugin(StepLR(optimizer, 1))
    return strategies.Naive(
        **options(model, [scheduler, *others], train_epochs=2) | {"optimizer": optimizer}
    )


def with_eval_classifier(classifier, make):
    def model():
        return TrainEvalModel(features(), nn.Linear(8, N_CLASSES), classifier())

    return plugin(make, model)


def any_verbosity(*args, verbose=None, **kwargs):
    """PyTorch has dropped the option ``verbose``, which Avalanche passes."""
    return MultiStepLR(*args, **kwargs)


VERBOSITY = (("avalanche.training.plugins.bic.MultiStepLR", any_verbosity),)
REPLAYED = {"mem_size": 6}
TASKS = partial(class_stream, task_labels=True)
PICTURES = partial(class_stream, (1, 2, 3))
IMAGES = partial(class_stream, (3, 16, 16), 2, 4, task_labels=True)

STRATEGIES = {
    "AETraining": case(strategies.AETraining, reconstruction, device="cpu", eval_every=-1),
    "AGEM": case(strategies.AGEM, criterion=CE, patterns_per_exp=4, sample_size=2),
    "AR1": Case(
        ar1,
        partial(class_stream, (3, 224, 224), 2, 2),
        replaced=(
            (
                "avalanche.training.supervised.ar1.MobilenetV1",
                lambda pretrained, latent_layer_num: MobilenetV1(
                    pretrained=False, latent_layer_num=latent_layer_num
                ),
            ),
        ),
    ),
    "BiC": case(
        strategies.BiC,
        criterion=CE,
        mem_size=12,
        val_percentage=0.5,
        stage_2_epochs=1,
        stream=partial(class_stream, n_samples=12),
        replaced=VERBOSITY,
    ),
    "CWRStar": case(strategies.CWRStar, criterion=CE, cwr_layer_name="classifier"),
    "CoPE": case(strategies.CoPE, criterion=CE, mem_size=6, n_classes=N_CLASSES, p_size=N_CLASSES),
    "Cumulative": case(strategies.Cumulative, criterion=CE),
    "DER": case(strategies.DER, mem_size=6, batch_size_mem=2),
    "ER_ACE": case(strategies.ER_ACE, mem_size=6, batch_size_mem=2),
    "ER_AML": Case(er_aml, partial(class_stream, n_samples=18)),
    "EWC": case(strategies.EWC, criterion=CE, ewc_lambda=0.5),
    "ExpertGateStrategy": Case(
        expert_gate, IMAGES, replaced=(("torchvision.models.alexnet", small_alexnet),)
    ),
    "FeatureReplay": case(
        strategies.FeatureReplay,
        criterion=losses.MaskedCrossEntropy,
        mem_size=6,
        batch_size_mem=2,
        likelihood=Categorical(),
    ),
    "FromScratchTraining": case(strategies.FromScratchTraining, criterion=CE),
    "GDumb": case(strategies.GDumb, criterion=CE, mem_size=6),
    "GEM": case(strategies.GEM, criterion=CE, patterns_per_exp=4, needs=("quadprog",)),
    "GSS_greedy": case(
        strategies.GSS_greedy,
        criterion=CE,
        mem_size=40,
        mem_strength=1,
        input_size=[N_IN],
        stream=partial(class_stream, n_samples=48),
    ),
    "GenerativeReplay": Case(generative_replay, PICTURES),
    "ICaRL": Case(icarl),
    "JointTraining": case(strategies.JointTraining, criterion=CE),
    "LFL": case(strategies.LFL, criterion=CE, lambda_e=0.5),
    "LaMAML": case(
        LaMAML,
        lambda: MTSimpleMLP(N_IN, 8),
        stream=TASKS,
        n_inner_updates=2,
        max_buffer_size=6,
        buffer_mb_size=2,
    ),
    "LearningToPrompt": Case(
        learning_to_prompt,
        replaced=(("avalanche.training.supervised.l2p.create_model", small_vit),),
    ),
    "LwF": case(strategies.LwF, criterion=CE, alpha=0.5, temperature=2.0),
    "MAS": case(strategies.MAS, criterion=CE),
    "MER": case(strategies.MER, mem_size=6, batch_size_mem=2, n_inner_steps=1),
    "MIR": case(strategies.MIR, criterion=CE, mem_size=6, subsample=4, batch_size_mem=2),
    "Naive": case(strategies.Naive),
    "Naive, online": case(strategies.Naive, stream=online_stream),
    "ObjectDetectionTemplate": case(ObjectDetectionTemplate, Detector, stream=detection_stream),
    "OnlineNaive": case(strategies.OnlineNaive, growing, stream=online_stream),
    "PNNStrategy": case(
        strategies.PNNStrategy,
        lambda: PNN(num_layers=1, in_features=N_IN, hidden_features_per_column=4),
        stream=TASKS,
    ),
    "PackNet": Case(packnet, TASKS),
    "Replay": case(strategies.Replay, criterion=CE, **REPLAYED),
    "SCR": case(
        strategies.SCR,
        lambda: SCRModel(feature_extractor=features(), projection=nn.Linear(8, 4)),
        mem_size=6,
        batch_size_mem=2,
    ),
    "StreamingLDA": Case(streaming_lda),
    "SynapticIntelligence": case(strategies.SynapticIntelligence, criterion=CE, si_lambda=0.1),
    "VAETraining": case(strategies.VAETraining, autoencoder, stream=PICTURES),
}

PLUGINS = {
    "AGEMPlugin": plugin(lambda: plugins.AGEMPlugin(patterns_per_experience=4, sample_size=2)),
    "BiCPlugin": Case(
        plugin(lambda: plugins.BiCPlugin(mem_size=12, val_percentage=0.5, stage_2_epochs=1)).build,
        partial(class_stream, n_samples=12),
        replaced=VERBOSITY,
    ),
    "CWRStarPlugin": Case(
        lambda others: (
            lambda model: strategies.Naive(
                **options(model, [plugins.CWRStarPlugin(model, "classifier"), *others])
            )
        )(mlp())
    ),
    "Clock": case(strategies.Naive),
    "CoPEPlugin": plugin(
        lambda: plugins.CoPEPlugin(mem_size=6, n_classes=N_CLASSES, p_size=N_CLASSES)
    ),
    "CurrentDataFeCAMUpdate": with_eval_classifier(FeCAMClassifier, plugins.CurrentDataFeCAMUpdate),
    "CurrentDataNCMUpdate": with_eval_classifier(NCMClassifier, plugins.CurrentDataNCMUpdate),
    "EWCPlugin": plugin(lambda: plugins.EWCPlugin(0.5)),
    "EarlyStoppingPlugin": Case(early_stopping),
    "EvaluationPlugin": case(strategies.Naive),
    "FeCAMOracle": with_eval_classifier(FeCAMClassifier, plugins.FeCAMOracle),
    "FeatureDistillationPlugin": plugin(
        plugins.FeatureDistillationPlugin,
        lambda: FeatureExtractorModel(features(), nn.Linear(8, N_CLASSES)),
    ),
    "FromScratchTrainingPlugin": plugin(plugins.FromScratchTrainingPlugin),
    "GDumbPlugin": plugin(lambda: plugins.GDumbPlugin(mem_size=6)),
    "GEMPlugin": Case(
        plugin(lambda: plugins.GEMPlugin(4, memory_strength=0.5)).build, needs=("quadprog",)
    ),
    "GSS_greedyPlugin": Case(
        plugin(
            lambda: plugins.GSS_greedyPlugin(mem_size=40, mem_strength=1, input_size=[N_IN])
        ).build,
        partial(class_stream, n_samples=48),
    ),
    "GenerativeReplayPlugin": Case(generative_replay_plugins, PICTURES),
    "ICaRLLossPlugin": case(strategies.Naive, criterion=losses.ICaRLLossPlugin),
    "LFLPlugin": plugin(lambda: plugins.LFLPlugin(0.5)),
    "LRSchedulerPlugin": Case(scheduled),
    "LwFPlugin": plugin(lambda: plugins.LwFPlugin(0.5, 2.0)),
    "MASPlugin": plugin(lambda: plugins.MASPlugin()),
    "MIRPlugin": plugin(
        lambda: plugins.MIRPlugin(mem_size=6, subsample=4, batch_size_mem=2), criterion=CE()
    ),
    "MaskedCrossEntropy": case(
        strategies.Naive, criterion=losses.MaskedCrossEntropy, likelihood=Categorical()
    ),
    "MemoryFeCAMUpdate": with_eval_classifier(FeCAMClassifier, plugins.MemoryFeCAMUpdate),
    "MemoryNCMUpdate": with_eval_classifier(NCMClassifier, plugins.MemoryNCMUpdate),
    "NCMOracle": with_eval_classifier(NCMClassifier, plugins.NCMOracle),
    "PeriodicEval": case(strategies.Naive, eval_every=1),
    "RARPlugin": plugin(
        lambda: plugins.RARPlugin(batch_size_mem=2, mem_size=6, name_ext_layer="features.0"),
        criterion=CE(),
    ),
    "RWalkPlugin": plugin(lambda: plugins.RWalkPlugin(delta_t=2)),
    "ReplayPlugin": plugin(lambda: plugins.ReplayPlugin(mem_size=6)),
    "SynapticIntelligencePlugin": plugin(lambda: plugins.SynapticIntelligencePlugin(0.1)),
    "TrainGeneratorAfterExpPlugin": Case(generative_replay_plugins, PICTURES),
}

CASES = STRATEGIES | PLUGINS


def public_classes(base):
    """The public concrete classes of avalanche.training that derive from ``base``."""
    found = {}
    for module in pkgutil.walk_packages(avalanche.training.__path__, "avalanche.training."):
        try:
            members = vars(importlib.import_module(module.name))
        except ImportError:
            continue
        for value in members.values():
            if inspect.isclass(value) and issubclass(value, base):
                found[value.__module__, value.__name__] = value
    return sorted(
        name for module, name in found
        if module.startswith("avalanche.training") and not name.startswith("_")
    )  # fmt: skip


def all_strategies():
    return public_classes(BaseSGDTemplate)


def all_plugins():
    return public_classes(BasePlugin)
