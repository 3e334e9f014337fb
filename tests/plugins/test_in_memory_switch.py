"""HypernetTemplate serves data from memory by default, and can do without."""

import pytest
import torchvision.transforms as v1
from avalanche.benchmarks import benchmark_from_datasets, with_task_labels
from avalanche.benchmarks.utils import ConstantSequence, TaskLabels

from avalanche_hnet import InMemoryPlugin
from tests.support.hypernets import hyper_model, learner
from tests.support.in_memory import image_model, random_stream

pytestmark = pytest.mark.in_memory


def test_the_template_has_it_by_default_and_says_how_to_do_without():
    labelled = random_stream(v1.RandomCrop(8)).train_stream[0].dataset
    labels = TaskLabels(ConstantSequence(0, len(labelled)))
    labelled = labelled.update_data_attribute("targets_task_labels", labels)
    benchmark = with_task_labels(benchmark_from_datasets(train=[labelled]))
    benchmark.train_stream[0].classes_in_this_experience = [0, 1]
    with pytest.raises(ValueError, match=r"RandomCrop.*in_memory=False"):
        learner(hyper_model(image_model())).train(benchmark.train_stream[0])
    learner(hyper_model(image_model()), in_memory=False).train(benchmark.train_stream[0])
    own = InMemoryPlugin(deterministic=[v1.RandomCrop])
    strategy = learner(hyper_model(image_model()), None, own)
    assert sum(isinstance(p, InMemoryPlugin) for p in strategy.plugins) == 1
    strategy.train(benchmark.train_stream[0])


@pytest.mark.parametrize("wrong", [3, "yes", InMemoryPlugin()])
def test_the_switch_of_the_template_is_a_boolean(wrong):
    with pytest.raises(TypeError, match="in_memory must be True or False"):
        learner(hyper_model(), in_memory=wrong)
